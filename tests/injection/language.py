"""Language models as the composites' YAML files describe them (conf/model/language), without the rest of a composite."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from tests.conftest import CONF
from vlatrain.backbones.architecture import model_class
from vlatrain.backbones.describe import sites
from vlatrain.config import ModelConfig
from vlatrain.injection.points import Sites

SMALL: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "num_heads": 4, "d_kv": 12, "d_ff": 72, "num_layers": 3, "num_decoder_layers": 2, "vocab_size": 60},
    "bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 72, "decoder_ffn_dim": 56, "vocab_size": 60, "max_position_embeddings": 40,
    },
}  # fmt: skip


@cache
def described(name: str, small: bool = False) -> ModelConfig:
    """A language model's description alone, with a task that all of its towers serve: `text` encodes, `decoder` writes."""
    read: Any = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "language" / f"{name}.yaml"))
    submodel = read["submodels"]["language"]
    task = {
        "architecture": submodel["architecture"],
        "towers": submodel["towers"],
        "other_modality": {"decoder": "text"},
        "output_towers": ["decoder"],
    }
    towers = {name: read["towers"][name] for name in submodel["towers"]}
    settings = read["config"]["text_config"] | (SMALL[name] if small else {})
    values = {
        "name": name,
        "random_init": True,
        "tasks": {"captioning": task},
        "towers": towers,
        "config": {"text_config": settings},
    }
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), values))  # type: ignore[return-value]


class Language(nn.Module):
    """A language model where a composite has it."""

    def __init__(self, language: PreTrainedModel) -> None:
        super().__init__()
        self.language = language
        self.config = language.config


def full_size(name: str) -> Language:
    """A language model at its full size, on the meta device."""
    with torch.device("meta"):
        return _built(name, small=False)


@cache
def _template(name: str) -> Language:
    torch.manual_seed(0)
    model = _built(name, small=True).eval().requires_grad_(False)
    for key, parameter in model.named_parameters():  # large enough to tell adapters by
        if parameter.dim() > 1 and "embed" not in key and "shared" not in key:
            nn.init.normal_(parameter, std=0.2)
    return model


def small(name: str) -> Language:
    """A language model that is built in milliseconds, always the same, frozen."""
    return copy.deepcopy(_template(name))


def _built(name: str, small: bool) -> Language:
    config = described(name, small)
    settings = dict(config.config["text_config"])
    architecture = model_class(config.tasks["captioning"].architecture, "")
    return Language(architecture(AutoConfig.for_model(settings.pop("model_type"), **settings)))


def where(name: str, *patterns: str, small: bool = False) -> Sites:
    """The points that patterns select; none: all."""
    return sites(described(name, small), "captioning", patterns or ["*"])


def trainable(model: nn.Module) -> int:
    """Number of parameters that train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
