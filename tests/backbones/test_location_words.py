"""Words for places that train: what they change, that all else is as before, and that they come back with the adapter."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones.composites import small
from tests.conftest import adapter_config, make_samples, small_config
from tests.learning import overfit
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.box_words import BINS
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.backbones.location_words import smooth_rows
from vlatrain.config import ModelConfig, TaskConfig
from vlatrain.config.model import LOCATION_WORDS, LOCATIONS
from vlatrain.injection.attach import attach, restore, save
from vlatrain.tasks import build
from vlatrain.training.batches import SharedBatches

TASK = "grounding_words"
SAMPLES = [
    replace(sample, boxes=((0.1 * n, 0.2, 0.1 * n + 0.3, 0.9),), question="the shape")
    for n, sample in enumerate(make_samples()[:4])
]
TEXTS = ["the shape", "a red car"]
NAMES = ["blip", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "clip+gpt2", "clip+t5", "clip+bart", "clip+llama", "blip2_opt", "blip2_t5", "instructblip", "llava", "smolvlm",
))]  # fmt: skip


def described(name: str) -> ModelConfig:
    vision, _, language = name.partition("+")
    config = small(vision, language) if language else small_config(name)
    served = config.tasks["vqa"]
    config.box_words = LOCATIONS
    config.tasks[TASK] = replace(served, trained=[*served.trained, LOCATION_WORDS])
    return config


def loaded(name: str) -> Backbone:
    return load(described(name), TASK, texts=TEXTS)


def task_on(backbone: Backbone) -> Any:
    task: Any = build(TaskConfig(name=TASK, max_length=9), backbone)
    task.config.decode.max_new_tokens = task.vqa.config.decode.max_new_tokens = 5
    return task


@pytest.mark.parametrize("name", NAMES)
def test_other_words_are_read_and_written_as_before(name: str) -> None:
    config = described(name)
    config.tasks["vqa"] = replace(config.tasks[TASK], trained=[*config.tasks[TASK].trained][:-1])
    before, now = load(config, "vqa", texts=TEXTS), loaded(name)
    weights = now.model.state_dict()
    for key, value in before.model.state_dict().items():
        weights[key][tuple(slice(0, size) for size in value.shape)] = value
    with torch.no_grad():
        logits = []
        for backbone in (before, now):
            task: Any = build(TaskConfig(name="vqa", max_length=9), backbone)
            batch = task.collate([replace(sample, answers=("red",)) for sample in SAMPLES])
            logits.append(task.generator.logits(task.generator.context(batch["inputs"]), batch["answer"]))
    model: Any = now.model
    first = model.location_words.first
    torch.testing.assert_close(logits[1][..., :first], logits[0][..., :first])
    assert logits[1].shape[-1] == max(logits[0].shape[-1], first + BINS)


@pytest.mark.parametrize("name", NAMES)
def test_boxes_are_learned_written_and_come_back(name: str, tmp_path: Path) -> None:
    backbone = loaded(name)
    where = sites(backbone.config, TASK, ["decoder"])
    model = attach(backbone.model, adapter_config("bottleneck", dim=8), where)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad and LOCATION_WORDS in key}
    width = next(iter(trained.values())).shape[1]
    assert [tuple(p.shape) for p in trained.values()] == [(BINS, width)] * 2
    table = backbone.model.get_submodule(backbone.writes_at).get_input_embeddings().weight
    frozen = table.detach().clone()
    task = task_on(backbone)
    with torch.no_grad():
        before = float(task.loss(task.collate(SAMPLES)))
    assert overfit(task, SAMPLES, 20, lr=1e-2) < before - 0.1
    assert torch.equal(table, frozen)
    batches = SharedBatches("cpu", 4)
    with torch.no_grad():
        found = task.evaluate(SAMPLES, batches)
    save(model, tmp_path)
    other = loaded(name)
    restore(other.model, adapter_config("bottleneck", dim=8), tmp_path, where)
    with torch.no_grad():
        again = task_on(other).evaluate(SAMPLES, batches)
    assert again.predictions == found.predictions


@pytest.mark.slow
def test_a_few_boxes_are_learned_by_heart() -> None:
    backbone = loaded("blip")
    attach(backbone.model, adapter_config("bottleneck", dim=8), sites(backbone.config, TASK, ["*"]))
    task = task_on(backbone)
    overfit(task, SAMPLES, 500, lr=1e-2)
    with torch.no_grad():
        found = task.evaluate(SAMPLES, SharedBatches("cpu", 4))
    assert (found.metrics["accuracy"], found.settings["unparsed"]) == (100, 0)
    assert found.predictions[0]["text"].replace(" ", "") == "<loc_0><loc_12><loc_19><loc_57>"


def test_rows_of_near_bins_are_alike_and_copies_have_words_of_their_own() -> None:
    rows = smooth_rows(torch.randn(50, 24))
    distance = (rows[:, None] - rows[None]).norm(dim=-1)
    assert distance.diagonal(1).max() < distance[0, BINS // 2]
    model: Any = loaded("blip").model
    copied = copy.deepcopy(model)
    ids = torch.tensor([[copied.location_words.first]])
    before = model.text_decoder.get_input_embeddings()(ids)
    torch.nn.init.zeros_(copied.location_words.read)
    assert not copied.text_decoder.get_input_embeddings()(ids).any()
    assert torch.equal(model.text_decoder.get_input_embeddings()(ids), before)
