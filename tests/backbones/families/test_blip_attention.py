"""The fused kernel and absorbed cross-attention give what transformers' attention gives, within rounding: masks, cross-attention,
cache, beams, gradients."""

from __future__ import annotations

from unittest.mock import create_autospec

import pytest
import torch
from torch import nn

from tests.conftest import make_samples, model_config, small_config
from tests.numerics import assert_close
from vlatrain.backbones.attention import additive
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import stacks
from vlatrain.backbones.families import blip
from vlatrain.backbones.families.blip import FAST, FastTextAttention
from vlatrain.backbones.loading import load
from vlatrain.config import DecodeConfig, ModelConfig, TaskConfig
from vlatrain.data import shapes
from vlatrain.tasks import build

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
BASES = {fast: plain for plain, fast in FAST.items()}


def both(task: str, config: ModelConfig) -> tuple[Backbone, Backbone]:
    """A backbone, and the same with transformers' own attention."""
    made = []
    for plain in (False, True):
        backbone = load(config, task, texts=TEXTS)
        for parameter in backbone.model.parameters() if config.random_init else ():
            if parameter.ndim > 1:  # random weights attend to everything alike unless they are large
                parameter.data.mul_(5)
        swapped = [module for module in backbone.model.modules() if type(module) in BASES]
        assert len(swapped) == sum(
            2 if "cross" in p.sites else 1 for p in stacks(config, task).values() for _ in range(p.layers)
        )
        for module in swapped if plain else ():
            module.__class__ = BASES[type(module)]
        made.append(backbone)
    return made[0], made[1]


@pytest.fixture(params=[False, True], ids=["kernel", "absorbed"])
def absorbing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether heads as small as those of test models absorb the weights of keys and values."""
    if request.param:
        monkeypatch.setattr(blip, "SHORT", 4)
    return request.param


@pytest.mark.parametrize("task", ["vqa", "captioning", "retrieval"])
def test_losses_and_gradients(task: str, absorbing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    spy = create_autospec(FastTextAttention.absorbed, side_effect=FastTextAttention.absorbed)
    monkeypatch.setattr(FastTextAttention, "absorbed", spy)
    for backbone in both(task, small_config("blip")):
        for name, parameter in backbone.model.named_parameters():
            parameter.requires_grad_(not (absorbing and "crossattention.self" in name))
        work = build(TaskConfig(name=task), backbone)
        torch.manual_seed(0)  # of the hard negatives
        loss = work.loss(work.collate(make_samples()))  # captions and questions of several lengths: padded
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in backbone.model.named_parameters() if p.grad is not None}))
    assert spy.called == absorbing
    for one, two in zip(*found, strict=True):
        assert_close(one, two, backbone.model)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("task", ["vqa", "captioning"])
def test_generation_with_cache_and_beams(task: str, beams: int, absorbing: bool) -> None:
    decode = DecodeConfig(num_beams=beams, max_new_tokens=8)
    texts = []
    scenes = shapes.build("vqa", "eval", 6, 0)
    for backbone in both(task, model_config("tiny_blip")):
        questions = [s.question for s in scenes] if task == "vqa" else None
        inputs = backbone.inputs([s.image.load() for s in scenes], questions, 40)
        with torch.no_grad():
            texts.append(backbone.generate(backbone.context(inputs), decode))  # type: ignore[attr-defined]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


def test_whoever_asks_for_the_weights_gets_them() -> None:
    fast, plain = both("captioning", small_config("blip"))
    pixels = fast.inputs([make_samples()[0].image.load()])["pixels"]
    weights = [b.model.vision_model(pixel_values=pixels, output_attentions=True).attentions for b in (fast, plain)]
    assert_close(weights[0], weights[1], plain.model)
    assert weights[0][0].shape == (1, 3, 26, 26)


def test_a_masked_position_is_not_seen_in_half_precision() -> None:
    fast, _ = both("captioning", small_config("blip"))
    attention: nn.Module = fast.model.text_decoder.bert.encoder.layer[0].attention.self.bfloat16()
    states = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    mask = torch.zeros(2, 1, 1, 5).masked_fill(torch.tensor([0, 0, 0, 1, 1]).bool(), torch.finfo(torch.float32).min)
    changed = torch.cat([states[:, :3], torch.randn(2, 2, 32, dtype=torch.bfloat16)], dim=1)
    one, two = (attention(value, attention_mask=mask)[0] for value in (states, changed))
    assert_close(one[:, :3], two[:, :3])
    assert torch.isfinite(one).all()


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mask_is_finite_in_any_type(given: torch.dtype, wanted: torch.dtype) -> None:
    mask = torch.tensor([0.0, torch.finfo(given).min], dtype=given)
    made = additive(mask, wanted)
    assert made is not None
    assert made.dtype == wanted
    assert made.isfinite().all()
    assert (made is mask) == (given == wanted)
