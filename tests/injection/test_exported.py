"""What adapters of an encoder leave to those of a decoder goes with the context of its sample, in every family with both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.backbones import composites
from tests.conftest import adapter_config, make_samples, small_config
from tests.numerics import assert_close, near
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import DecodeConfig, TaskConfig
from vlatrain.injection.attach import attach
from vlatrain.tasks import build

SAMPLES = make_samples()[:4]


def backbone_of(name: str) -> Backbone:
    if name in composites.LANGUAGE:
        return composites.loaded("clip", name)
    return load(small_config(name), "vqa", texts=composites.TEXTS)


def adapted(name: str) -> Backbone:
    backbone = backbone_of(name)
    points = {"blip": ["*"], "gpt2": ["decoder"], "llama": ["decoder"]}.get(name, ["text", "decoder"])
    attach(backbone.model, adapter_config("lst"), sites(backbone.config, "vqa", points))
    torch.manual_seed(1)
    for key, parameter in backbone.model.named_parameters():
        if parameter.requires_grad and "projection" not in key:
            nn.init.normal_(parameter, std=0.5)
    backbone.model.eval()
    return backbone


@pytest.mark.parametrize("name", ["blip", "bart", "t5", "blip2_t5", "florence2", "gpt2", "llama"])
def test_a_batch_is_as_its_samples(name: str) -> None:
    """Several answers for one sample, none alike; another order; generation by beams with alternatives."""
    backbone = adapted(name)
    task: Any = build(TaskConfig(name="vqa", decode=DecodeConfig(num_beams=3, max_new_tokens=4)), backbone)
    samples = [SAMPLES[0], replace(SAMPLES[1], answers=("red", "yes", "green")), *SAMPLES[2:]]
    with torch.no_grad():
        together = task.loss(task.collate(samples))
        alone = torch.stack([task.loss(task.collate([sample])) for sample in samples]).mean()
        assert_close(together, alone, backbone.model)
        answers = task.answer(task.questions(samples), alternatives=2)
        backwards = task.answer(task.questions(samples[::-1]), alternatives=2)
    for one, other in zip(answers, backwards[::-1], strict=True):
        assert [text for text, _ in one] == [text for text, _ in other]
        for (_, here), (_, there) in zip(one, other, strict=True):
            assert here == near(there, backbone.model, scale=1.0)


@pytest.mark.parametrize("name", composites.LANGUAGE)
def test_a_visual_projection_learns_through_the_side(name: str) -> None:
    backbone = adapted(name)
    task = build(TaskConfig(name="vqa"), backbone)
    task.loss(task.collate(SAMPLES)).backward()
    gradients = {key: p.grad for key, p in backbone.model.named_parameters() if p.requires_grad}
    assert {key for key in gradients if key.startswith("projection.")}
    for key, gradient in gradients.items():
        assert gradient is not None, key
        assert bool(gradient.abs().sum() > 0), key
