"""Models that continue text after an image, for tests: small, with random weights loud enough to tell inputs apart."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tests.conftest import make_samples, small_config
from vlatrain.backbones.base import Inputs
from vlatrain.backbones.loading import load

CHAT = ("llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "smolvlm", "paligemma")
PREFIX = ("blip2_opt", "instructblip")
SEQ2SEQ = ("florence2", "blip2_t5")
NAMES = (*CHAT, *PREFIX, *SEQ2SEQ)
CONVERSING = CHAT[:-1]
TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
QUESTIONS = ["is it red?", "what colour is it? what colour?", "is it?", "red"]
REPLIES = ["red", "a blue picture", "yes", "it is not red"]


def make(name: str, task: str = "vqa", seed: int = 0) -> Any:
    """A backbone of its own."""
    backbone = load(small_config(name), task, texts=TEXTS, seed=seed)
    for parameter in backbone.model.parameters():
        if parameter.ndim > 1 and name != "blip2_t5":  # T5's are
            parameter.data.mul_(6)
    return backbone


@cache
def shared(name: str) -> Any:
    """A backbone that several tests read."""
    return make(name)


def images() -> list[Image.Image]:
    """Four images, square and wide by turns."""
    return [sample.image.load().resize((32 + 16 * (i % 2), 32)) for i, sample in enumerate(make_samples()[:4])]


def own_logits(backbone: Any, name: str, inputs: Inputs, ids: Tensor) -> Tensor:
    """Next-token logits (1, L, vocabulary) of a text's tokens (1, L) by transformers' own forward pass, image and all."""
    if name in SEQ2SEQ:
        return backbone.model(**inputs, decoder_input_ids=ids, use_cache=False).logits
    behind = ids[:, 1:]
    given = {key: value for key, value in inputs.items() if key != "images"}
    fill = {"input_ids": behind, "attention_mask": torch.ones_like(behind), "token_type_ids": torch.ones_like(behind)}
    for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if key in given:
            given[key] = torch.cat([given[key], fill.get(key, torch.zeros_like(behind))], dim=1)
    return backbone.model(**given, use_cache=False).logits[:, -ids.shape[1] :]
