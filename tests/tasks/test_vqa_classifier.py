"""VQA by choice from a list: targets and loss by their definitions, and where the list comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import adapter_config, make_samples, small_config
from tests.learning import overfit
from tests.numerics import assert_close, near
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, TaskConfig, UserError
from vlatrain.data.sample import Sample
from vlatrain.injection.attach import attach
from vlatrain.tasks import build, prepare
from vlatrain.tasks.vqa import Vqa
from vlatrain.tasks.vqa_classifier import Answering
from vlatrain.training.batches import SharedBatches

SAMPLES = make_samples()
TEXTS = [text for s in SAMPLES for text in (s.question, *s.answers)]


def made(samples: Sequence[Sample] = SAMPLES, method: AdapterConfig | None = None, **settings: Any) -> Answering:
    backbone = load(small_config("vilt"), "vqa", texts=TEXTS)
    config = TaskConfig(name="vqa", **settings)
    prepare(config, backbone, samples)
    if method:
        attach(backbone.model, method, sites(backbone.config, "vqa", ["*"]))
    task = build(config, backbone, samples)
    assert isinstance(task, Answering)
    return task


def test_a_backbone_that_chooses_is_none_that_writes() -> None:
    backbone = made().backbone
    with pytest.raises(UserError, match="gives no answers that task=vqa can take"):
        Vqa(TaskConfig("vqa"), backbone)


def test_targets_count_annotators() -> None:
    task = made(answer_list=["yes", "no", "2"])

    def targets(*answers: str, weights: tuple[float, ...] = ()) -> list[float]:
        found = task.targets([replace(SAMPLES[0], answers=answers, weights=weights)])
        return [round(value, 4) for value in found[0].tolist()]

    assert targets("yes") == [1, 0, 0]
    assert targets("yes", "no") == [0.5, 0.5, 0]
    assert targets(*["yes"] * 8, "no", "maybe") == [1, 0.3, 0]  # 0.3 for each of ten annotators
    assert targets(*["yes"] * 3, *["no"] * 2, *["maybe"] * 5) == [0.9, 0.6, 0]
    assert targets("Yes.", "two", "Two") == [pytest.approx(1 / 3, abs=1e-4), 0, pytest.approx(2 / 3, abs=1e-4)]
    assert targets("yes", "no", weights=(0.9, 0.4)) == [0.9, 0.4, 0]
    assert targets("maybe") == [0, 0, 0]


def test_the_loss_is_transformers_own() -> None:
    task = made()
    batch = task.collate(SAMPLES)
    inputs = batch["inputs"]
    own = task.backbone.model(
        input_ids=inputs["question"].ids,
        attention_mask=inputs["question"].mask,
        pixel_values=inputs["pixels"],
        pixel_mask=inputs["pixel_mask"],
        labels=batch["targets"],
    )
    assert_close(task.loss(batch), own.loss, task.backbone.model)


def test_the_list_is_the_users_else_the_checkpoints_else_the_datas() -> None:
    backbone = load(small_config("vilt"), "vqa", texts=TEXTS)
    everything = ["red", "green", "blue", "black", "yes", "no", "maybe"]
    backbone.take_answers(everything)  # type: ignore[attr-defined]

    def settled(samples: Sequence[Sample], *given: str) -> list[str]:
        config = TaskConfig(name="vqa", answer_list=list(given))
        config = prepare(config, backbone, samples)
        assert backbone.answers == config.answer_list  # type: ignore[attr-defined]
        return config.answer_list

    assert settled(SAMPLES) == everything
    assert settled([]) == everything  # a finished run without training
    assert settled(SAMPLES, "yes", "no") == ["yes", "no"]
    assert settled(SAMPLES) == ["no", "yes", "red", "green", "blue", "black"]  # "yes" and "no" alone answer too few
    assert settled([replace(SAMPLES[0], answers=("Left", "left", "left"))]) == ["left"]


def test_every_answer_comes_with_its_own_probability() -> None:
    task = made()
    with torch.no_grad():
        best = task.answer(task.questions(SAMPLES), alternatives=99)
        logits = task.answerer.answer_logits(task.questions(SAMPLES)["inputs"])
    for row, answers in enumerate(best):
        assert {answer for answer, _ in answers} == set(task.config.answer_list)
        for answer, probability in answers:
            assert probability == near(logits[row, task.place[answer]].sigmoid().item(), task.backbone.model)
        assert [value for _, value in answers] == sorted((value for _, value in answers), reverse=True)


@pytest.mark.slow  # the table of tasks has a quick one
@pytest.mark.parametrize(
    "method",
    ["bottleneck", pytest.param("full", marks=pytest.mark.slow), pytest.param("lora", marks=pytest.mark.slow)],
)
def test_it_overfits_with_a_classifier_that_is_new(method: str) -> None:
    task = made(method=AdapterConfig(name="full") if method == "full" else adapter_config(method, dim=8))
    assert all(parameter.requires_grad for parameter in task.backbone.model.classifier.parameters())  # type: ignore[union-attr]
    assert overfit(task, SAMPLES, 150, lr=3e-3) < 0.05
    with torch.no_grad():
        found = task.evaluate(SAMPLES, SharedBatches("cpu", len(SAMPLES)))
    assert found.metrics["accuracy"] == 100
    assert found.settings["decode"] == {"answers": "classify", "list": 6}
