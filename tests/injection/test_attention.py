"""Methods that look into attention, in every kind of it that backbones have: heads that fill no width, heads that share keys and
values, query, key and value in one layer, windows of an image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.backbones import chatting, composites
from tests.conftest import adapter_config
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.config import AdapterConfig
from vlatrain.injection.attach import attach

CHAT = [name for name in chatting.NAMES if name not in ("qwen2_5_vl_3b", "smolvlm_2b")]
COMPOSITES = [f"clip+{language}" for language in composites.LANGUAGE] + ["dinov2+gpt2", "dinov3+gpt2", "siglip+gpt2"]
QUICK = ("smolvlm", "florence2", "clip+gpt2")  # grouped heads; windows; one layer of GPT-2's kind
backbones = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in (*CHAT, *COMPOSITES)]
)


def made(name: str) -> Backbone:
    return composites.loaded(*name.split("+")) if "+" in name else chatting.make(name)


def logits_of(backbone: Any) -> torch.Tensor:
    given = composites if backbone.config.submodels else chatting
    images = composites.images(backbone) if backbone.config.submodels else chatting.images()
    target, _ = backbone.target(chatting.REPLIES, 20)
    return backbone.logits(backbone.context(backbone.inputs(images, given.QUESTIONS, 40)), target)


@backbones
@pytest.mark.parametrize(
    "method",
    [
        adapter_config("llama_adapter", dim=3, points=["*.*.attn"]),
        adapter_config("bottleneck", dim=3, points=["*.*.attn"], options={"placement": "parallel"}),
    ],
    ids=lambda method: method.name,
)
def test_starts_as_the_frozen_model_and_learns_at_every_attention(name: str, method: AdapterConfig) -> None:
    backbone = made(name)
    with torch.no_grad():
        before = logits_of(backbone)
    attach(backbone.model, method, sites(backbone.config, "vqa", method.points or []))
    trained = {key: p for key, p in backbone.model.named_parameters() if p.requires_grad and "adapter" in key}
    with torch.no_grad():
        assert torch.equal(logits_of(backbone), before)
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.3)
    logits_of(backbone).square().sum().backward()
    for key, parameter in trained.items():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.abs().sum() > 0), key
