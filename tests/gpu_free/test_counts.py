"""Counts and lengths are whole numbers, whatever the towers compute in: bf16 has none between 256 and 258."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from tests.backbones.chatting import TEXTS
from tests.backbones.small import SETTINGS
from tests.conftest import make_samples, model_config
from vlatrain.backbones.loading import load
from vlatrain.config import DecodeConfig, TaskConfig
from vlatrain.tasks import build
from vlatrain.training.precision import autocast

CPU = torch.device("cpu")


def with_image_size(name: str, side: int) -> Any:
    """A small backbone that sees images at this size, in patches of 8 pixels."""
    settings = SETTINGS[name]
    text = {**settings["text_config"], "max_position_embeddings": 1024}
    vision = {**settings["vision_config"], "image_size": side}
    config = model_config(name, random_init=True, config={**settings, "vision_config": vision, "text_config": text})
    return load(config, "vqa", texts=TEXTS)


@pytest.mark.parametrize("name", ["llava", "paligemma"])
@pytest.mark.parametrize("trunk", [torch.float32, torch.bfloat16], ids=["autocast", "cast"])
def test_an_image_of_more_than_256_tokens(name: str, trunk: torch.dtype) -> None:
    backbone = with_image_size(name, 136)  # 17 x 17 = 289, which bf16 rounds to 288
    backbone.model.to(trunk)
    samples = make_samples()[:2]
    task = build(TaskConfig(name="vqa", decode=DecodeConfig(max_new_tokens=2)), backbone, samples)
    batch = task.collate(samples)
    with torch.no_grad(), autocast(CPU, "bf16"):
        context = backbone.context(batch["inputs"])
        assert context["visible"].dtype == torch.long
        assert context["visible"].sum(dim=1).tolist() == [289, 289]
        assert task.loss(batch).isfinite()
        assert len(task.answer(batch)) == 2


def test_images_of_different_sizes_keep_all_their_tokens() -> None:
    config = model_config("qwen2_5_vl", random_init=True, config=SETTINGS["qwen2_5_vl"])
    backbone = load(config, "vqa", texts=TEXTS)
    images = [Image.new("RGB", (32 * 17, 16 * 17)), Image.new("RGB", (64, 64))]
    inputs = backbone.inputs(images, ["red?", "red?"], 8)
    counted = (inputs["input_ids"] == backbone.model.config.image_token_id).sum(dim=1).tolist()
    assert max(counted) > 256
    with torch.no_grad(), autocast(CPU, "bf16"):
        context = backbone.context(inputs)
        target, _ = backbone.target(["red", "blue"], 8)
        assert context["visible"].sum(dim=1).tolist() == counted
        assert backbone.logits(context, target).isfinite().all()
