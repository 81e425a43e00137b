"""Backbones load from folders in the hub's layout, or with random weights; what cannot be had is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.backbones.heads import assert_heads
from tests.conftest import model_config, small_config
from vlatrain.backbones.base import Answerer, Backbone, Embedder, Generator, Matcher
from vlatrain.backbones.describe import sites, stacks
from vlatrain.backbones.loading import load, meta_model
from vlatrain.config import UserError
from vlatrain.injection.points import everything

TEXTS = ["a red circle", "is there a green square?", "what colour is it?"]
DUALS = ["clip", "metaclip2", "siglip", "siglip2", "siglip2_naflex", "align", "altclip", "chinese_clip", "aimv2"]
SERVED = [
    ("blip", "vqa"),
    ("blip", "captioning"),
    ("blip", "retrieval"),
    ("vilt", "vqa"),
    ("vilt", "retrieval"),
    ("clip", "vqa"),
    *((name, "retrieval") for name in DUALS),
]
PROTOCOLS = {("vilt", "vqa"): Answerer, ("clip", "vqa"): Answerer, ("vilt", "retrieval"): Matcher}


def save(backbone: Backbone, folder: Path) -> Path:
    """A checkpoint in the hub's layout."""
    backbone.model.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "task"), SERVED)
def test_random_is_seeded_frozen_and_complete(name: str, task: str) -> None:
    config = small_config(name)
    one, two, other = (load(config, task, texts=TEXTS, seed=seed) for seed in (1, 1, 2))
    weights = [dict(backbone.model.named_parameters()) for backbone in (one, two, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])
    assert not any(parameter.requires_grad for parameter in one.model.parameters())
    assert not any(module.training for module in one.model.modules())
    assert isinstance(one, PROTOCOLS.get((name, task), Embedder if task == "retrieval" else Generator))
    found = sites(config, task, ["*"])  # the description names modules that are there
    for point, place in found.places.items():
        assert isinstance(one.model.get_submodule(place.output), torch.nn.Linear)
        if point.site == "attn":
            assert_heads(one.model, place)
        assert place.output.startswith(place.layer)
        one.model.get_submodule(place.input)
        for role, path in place.modules.items():
            module = one.model.get_submodule(path)
            assert ("Norm" in type(module).__name__) if role == "norm" else isinstance(module, torch.nn.Linear), path
    assert len(found.places) == len(everything(stacks(config, task)))
    inside = [path for tower in found.inside.values() for path in tower.values()]
    for outside in (*found.heads, *found.features.values(), *inside):
        one.model.get_submodule(outside)


@pytest.mark.parametrize(("name", "task"), SERVED)
def test_a_folder_loads_as_it_was_saved(name: str, task: str, tmp_path: Path) -> None:
    first = load(small_config(name), task, texts=TEXTS)
    config = model_config(name, checkpoint=str(save(first, tmp_path / "hub")))
    second = load(config, task)
    for (key, one), (_, two) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(one, two), key
    assert torch.equal(first.text(TEXTS, 20).ids, second.text(TEXTS, 20).ids)
    layers = {tower: second.model.get_submodule(config.towers[tower].layers) for tower in config.tasks[task].towers}
    assert [stack.layers for stack in stacks(config, task).values()] == [len(found) for found in layers.values()]


@pytest.mark.parametrize(
    ("name", "task", "parameters"),
    # the published sizes: BLIP base VQA 385 M and captioning 247 M with the tied head counted twice, CLIP B/16 150 M, SigLIP base
    # 203 M and so400m 878 M, SigLIP 2 base 375 M, ALIGN base 172 M, MetaCLIP 2 H/14 1.86 B, AltCLIP 864 M, Chinese-CLIP 188 M
    # (86 M and 102 M for the towers), AIMv2 L/14 with text 437 M (as their model cards and papers have them); ViLT-B/32 87.4 M
    # without word embeddings, positions and pooler
    [
        ("blip", "vqa", 361_230_140),
        ("blip", "captioning", 223_971_644),
        ("clip", "retrieval", 149_620_737),
        ("vilt", "vqa", 117_588_537),
        ("vilt", "retrieval", 87_421_440 + (30_522 + 40 + 145) * 768 + 768 * 769 + 769),
        ("siglip", "retrieval", 203_155_970),
        ("siglip_so400m", "retrieval", 877_960_498),
        ("siglip2", "retrieval", 375_187_970),
        ("siglip2_naflex", "retrieval", 375_234_050),
        ("align", "retrieval", 172_117_841),
        ("metaclip2", "retrieval", 1_858_783_745),
        ("altclip", "retrieval", 864_186_113),
        ("chinese_clip", "retrieval", 188_262_913),
        ("aimv2", "retrieval", 436_680_193),
    ],
)
def test_full_size_on_the_meta_device(name: str, task: str, parameters: int) -> None:
    model = meta_model(model_config(name), task)
    assert isinstance(model, PreTrainedModel)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_a_hub_out_of_reach_is_one_line_with_the_ways_out() -> None:
    with pytest.raises(UserError) as error:
        load(model_config("blip", checkpoint="someone/nothing"), "vqa")
    (line,) = error.value.problems
    assert "someone/nothing" in line
    assert "\n" not in line
    for way in ("model.checkpoint=FOLDER", "model.random_init=true", "model=tiny_blip"):
        assert way in line


def test_a_checkpoint_of_another_task_is_refused(tmp_path: Path) -> None:
    folder = save(load(small_config("blip"), "captioning", texts=TEXTS), tmp_path / "captioner")
    with pytest.raises(UserError, match=r"lacks \d+ of the weights of BlipForQuestionAnswering"):
        load(model_config("blip", checkpoint=str(folder)), "vqa")


def test_a_description_can_name_only_model_classes() -> None:
    config = small_config("blip")
    config.tasks["vqa"].architecture = "pipeline"
    with pytest.raises(UserError, match="no model class"):
        load(config, "vqa", texts=TEXTS)


def test_a_task_it_does_not_serve() -> None:
    with pytest.raises(UserError, match="does not serve task=captioning; it serves retrieval, classification, vqa"):
        load(small_config("clip"), "captioning")


SIDES = {
    "tiny_clip": 128,
    "tiny_blip": 128,
    "clip": None,
    "vilt": None,
    "qwen2_5_vl": 0,
    "smolvlm": 0,
    "siglip2_naflex": 0,
}


@pytest.mark.parametrize("name", SIDES)
def test_jpegs_are_scaled_for_models_of_one_size(name: str) -> None:
    """With twice the pixels that the model takes; models that take an image's own size get all of it."""
    config = model_config(name) if name.startswith("tiny") else small_config(name)
    task = "vqa" if "vqa" in config.tasks else "retrieval"
    backbone = load(config, task, texts=["a"])
    backbone.scale_jpegs()
    wanted = SIDES[name]
    if wanted is None:
        wanted = 2 * backbone.model.config.to_dict().get("vision_config", backbone.model.config.to_dict())["image_size"]
    assert backbone.jpeg_side == wanted
