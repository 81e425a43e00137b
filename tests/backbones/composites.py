"""Composites for tests: any vision submodel with any language submodel, small, with random weights, from the YAML files."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.conftest import make_samples
from vlatrain.backbones.families.composite import Composite
from vlatrain.backbones.loading import load
from vlatrain.cli.compose import typed
from vlatrain.cli.registry import register
from vlatrain.config import ModelConfig, TrainConfig
from vlatrain.config.folder import conf_dir

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions, "question answer vqa caption")]
_VISION = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 48, "patch_size": 16}
VISION: dict[str, dict[str, Any]] = {
    "clip": {**_VISION, "intermediate_size": 56},
    "siglip": {**_VISION, "intermediate_size": 56},
    "dinov2": {**_VISION, "mlp_ratio": 2},
    "dinov3": {**_VISION, "intermediate_size": 56},
    "features": {"hidden_size": 24, "tokens": 5},
}
LANGUAGE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 72, "n_layer": 2, "n_head": 6, "n_inner": 88, "n_positions": 96, "vocab_size": 400},
    "llama": {
        "hidden_size": 72, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
        "intermediate_size": 88, "vocab_size": 400, "max_position_embeddings": 96,
    },
    "bart": {
        "d_model": 72, "encoder_layers": 2, "decoder_layers": 4, "encoder_attention_heads": 2, "decoder_attention_heads": 6,
        "encoder_ffn_dim": 88, "decoder_ffn_dim": 76, "vocab_size": 400, "max_position_embeddings": 96,
    },
    "t5": {"d_model": 72, "d_kv": 10, "d_ff": 88, "num_layers": 4, "num_decoder_layers": 2, "num_heads": 6, "vocab_size": 400},
}  # fmt: skip


def described(vision: str, language: str, model: str = "composite") -> ModelConfig:
    """The full-size description, as the command line composes it."""
    return copy.deepcopy(_composed(vision, language, model))


@cache
def _composed(vision: str, language: str, model: str) -> ModelConfig:
    register()
    submodels = [f"model/vision={vision}", f"model/language={language}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("train", overrides=[f"model={model}", *submodels])
    return typed(composed, TrainConfig).model


def small(vision: str, language: str, **options: Any) -> ModelConfig:
    """The same, small and with random weights."""
    config = described(vision, language)
    config.random_init = True
    config.options |= options
    config.config = OmegaConf.to_container(  # type: ignore[assignment]
        OmegaConf.merge(config.config, {"vision_config": VISION[vision], "text_config": LANGUAGE[language]})
    )
    return config


def loaded(vision: str, language: str, task: str = "vqa", **options: Any) -> Composite:
    """A small composite. Its weights are louder than usual, else one so narrow answers the same to everything; its words most of
    all, as a frozen head of small ones can be sure of nothing."""
    backbone = load(small(vision, language, **options), task, texts=TEXTS)
    for name, parameter in backbone.model.named_parameters():
        # T5 does not divide by the root of a head's size: queries as loud would make of rounding another choice of its softmax
        if parameter.ndim > 1 and not (language == "t5" and name.endswith(".q.weight")):
            parameter.data.mul_(5)
    inner = backbone.model.language
    for words in (inner.get_input_embeddings().weight, inner.get_output_embeddings().weight):
        words.data.mul_(max(1, 1 / words.std()))
    backbone.model.__dict__.pop("_size", None)
    assert isinstance(backbone, Composite)
    return backbone


def images(backbone: Composite, count: int = 4) -> list[Any]:
    """Images, or features if the composite takes these."""
    if backbone.model.vision is not None:
        return [sample.image.load() for sample in make_samples()[:count]]
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(5 + i % 2, 24, generator=generator).numpy() for i in range(count)]


QUESTIONS = ["is it red?", "what colour is the picture?", "is it red?", "what colour is it is it?"]
