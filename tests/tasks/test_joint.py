"""Joint training: each subtask's loss and scores are its own task's, and adapters for each subtask are each subtask's alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from tests.conftest import adapter_config, make_samples, small_config
from tests.learning import overfit
from tests.numerics import assert_close, near
from vlatrain.adapters import Bottleneck
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, DecodeConfig, TaskConfig
from vlatrain.data.sample import Sample
from vlatrain.injection.attach import attach, restore, save
from vlatrain.injection.context import for_task
from vlatrain.tasks import build
from vlatrain.tasks.joint import Joint
from vlatrain.training.batches import SharedBatches
from vlatrain.training.modes import checkpoint_gradients

CONFIG = small_config("blip")
SUBTASKS = ("ask", "tell")
TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
EACH = Bottleneck.count(48, 4)
DOWN = 48 * 4 + 4


def made(**adapter: Any) -> tuple[Backbone, nn.Module, Joint]:
    """A small BLIP with bottlenecks everywhere, every trainable tensor random, and a joint task of two subtasks on it."""
    backbone = load(CONFIG, "joint", texts=TEXTS)
    method = adapter_config("bottleneck", dim=4, **adapter)
    model = attach(backbone.model, method, sites(CONFIG, "joint", ["*"]), SUBTASKS)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return backbone, model, task_on(backbone)


def task_on(backbone: Backbone) -> Joint:
    decode = DecodeConfig(max_new_tokens=12)
    subtasks = {
        "ask": TaskConfig(decode=decode),
        "tell": TaskConfig(name="captioning", metric="cider_d", decode=decode),
    }
    task = build(TaskConfig(name="joint", metric="mean", subtasks=subtasks), backbone)
    assert isinstance(task, Joint)
    return task


def two_subtasks(asked: int = 8, told: int = 8) -> list[Sample]:
    """Samples of both subtasks, taking turns as far as they go."""
    ask = [replace(sample, id=f"ask/{sample.id}", subtask="ask") for sample in make_samples()[:asked]]
    tell = [replace(s, id=f"tell/{s.id}", subtask="tell", captions=s.captions[:1]) for s in make_samples()[:told]]
    return sorted([*ask, *tell], key=lambda sample: sample.id.partition("/")[2])


def loss_of(task: Joint, samples: Sequence[Sample]) -> float:
    with torch.no_grad():
        return float(task.loss(task.collate(samples)))


def gradients(task: Joint, model: nn.Module, samples: Sequence[Sample]) -> dict[str, Tensor | None]:
    model.zero_grad()
    task.loss(task.collate(samples)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("asked", "told"), [(8, 8), (6, 2), (0, 5), (3, 0)])
def test_the_loss_is_the_mean_over_all_samples(asked: int, told: int) -> None:
    _, _, task = made()
    samples = two_subtasks(asked, told)
    expected = 0.0
    for sample in samples:
        own = task.subtasks[sample.subtask]
        with torch.no_grad():
            expected += float(own.loss(own.collate([sample]))) / len(samples)
    assert loss_of(task, samples) == near(expected, task.backbone.model)
    assert sorted(task.collate(samples)["ids"]) == sorted(sample.id for sample in samples)


def test_scores_are_the_subtasks_own() -> None:
    _, _, task = made()
    samples = two_subtasks()
    with torch.no_grad():
        found = task.evaluate(samples, SharedBatches("cpu", 3))
        alone = {
            name: subtask.evaluate([s for s in samples if s.subtask == name], SharedBatches("cpu", 3))
            for name, subtask in task.subtasks.items()
        }
    assert found.metrics["mean"] == pytest.approx((found.metrics["ask/accuracy"] + found.metrics["tell/cider_d"]) / 2)
    expected = {f"{name}/{score}": value for name, own in alone.items() for score, value in own.metrics.items()}
    assert {name: value for name, value in found.metrics.items() if name != "mean"} == expected
    assert found.settings["mean_of"] == ["ask/accuracy", "tell/cider_d"]
    assert {name: own["task"] for name, own in found.settings["subtasks"].items()} == {
        "ask": "vqa",
        "tell": "captioning",
    }
    assert [record["subtask"] for record in found.predictions] == ["ask"] * 8 + ["tell"] * 8
    assert found.predictions[:8] == [{"subtask": "ask", **record} for record in alone["ask"].predictions]


LISTED = "{question} {options}"


@pytest.mark.parametrize(
    ("settings", "headline", "baseline"),
    [
        ({"answers": "options"}, "accuracy", "chance"),
        ({"answers": "letter", "prompt": LISTED}, "accuracy", "chance"),
        ({"metric": "relaxed_accuracy"}, "relaxed_accuracy", "most_frequent_answer"),
        ({"metric": "anls"}, "anls", "most_frequent_answer"),
    ],
)
def test_choice_and_other_measures_are_subtasks(settings: dict[str, str], headline: str, baseline: str) -> None:
    """Beside plain questions: losses, scores and baselines are those of the same task alone."""
    backbone = load(CONFIG, "joint", texts=[*TEXTS, "a. b. c."])
    subtasks = {"ask": TaskConfig(decode=DecodeConfig(max_new_tokens=4)), "pick": TaskConfig(**settings)}
    subtasks["pick"].decode.max_new_tokens = 4
    joint = build(TaskConfig(name="joint", metric="mean", subtasks=subtasks), backbone)
    samples = two_subtasks(4, 0)
    for n, sample in enumerate(make_samples()[:4]):
        options = (("red", *sample.answers), (*sample.answers, "blue", "7"))[n % 2]
        samples.append(replace(sample, id=f"pick/{n}", subtask="pick", options=options))
    alone = {name: build(config, backbone) for name, config in subtasks.items()}
    own = {name: [sample for sample in samples if sample.subtask == name] for name in subtasks}
    with torch.no_grad():
        found = joint.evaluate(samples, SharedBatches("cpu", 3))
        for name, task in alone.items():
            expected = task.evaluate(own[name], SharedBatches("cpu", 3))
            assert {score: found.metrics[f"{name}/{score}"] for score in expected.metrics} == expected.metrics
        losses = [float(task.loss(task.collate(own[name]))) for name, task in alone.items()]
        assert float(joint.loss(joint.collate(samples))) == near(sum(losses) / 2, backbone.model)
    assert found.settings["mean_of"] == ["ask/accuracy", f"pick/{headline}"]
    yardsticks = joint.yardsticks(samples, joint.constants(samples))
    assert f"pick/{headline}" in yardsticks.baselines[f"pick/{baseline}"].metrics


@pytest.mark.slow
def test_full_fine_tuning_of_a_random_model_overfits_both_subtasks() -> None:
    backbone = load(CONFIG, "joint", texts=TEXTS)
    for parameter in backbone.model.parameters():  # the usual initialisation is too quiet for a model of width 48
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    attach(backbone.model, AdapterConfig(name="full"), sites(CONFIG, "joint", ["*"]))
    task = task_on(backbone)
    samples = two_subtasks(4, 4)
    overfit(task, samples, 200, lr=1e-3)
    with torch.no_grad():
        found = task.evaluate(samples, SharedBatches("cpu", 3))
    by_id = {sample.id: sample for sample in samples}
    for record in found.predictions:
        sample = by_id[record["id"]]
        assert record["prediction"] == (sample.answers if sample.subtask == "ask" else sample.captions)[0]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, EACH),
        ({"by_task": True}, 2 * EACH),
        ({"by_task": True, "share": {"what": "down", "over": ["task"]}}, 2 * EACH - DOWN),  # the half-shared one
        ({"by_task": True, "share": {"what": "up", "over": ["task"]}}, EACH + DOWN),
        ({"by_task": True, "share": {"what": "all", "over": ["task"]}}, EACH),
    ],
)
def test_counts(options: dict, count: int, tmp_path: Path) -> None:
    _, model, task = made(**options)
    places = len(sites(CONFIG, "joint", ["*"]).places)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == places * count
    save(model, tmp_path)
    backbone = load(CONFIG, "joint", texts=TEXTS)
    restored = restore(backbone.model, adapter_config("bottleneck", dim=4, **options), tmp_path)
    assert sum(p.numel() for name, p in restored.named_parameters() if "vlatrain_unit" in name) == places * count
    samples = two_subtasks()
    assert loss_of(task_on(backbone), samples) == loss_of(task, samples)
    other = load(CONFIG, "joint", texts=TEXTS)
    PeftModel.from_pretrained(other.model, str(tmp_path), low_cpu_mem_usage=True)
    assert loss_of(task_on(other), samples) == loss_of(task, samples)


def test_adapters_for_each_subtask_are_that_subtasks_alone() -> None:
    _, model, task = made(by_task=True)
    only = {name: [sample for sample in two_subtasks() if sample.subtask == name] for name in SUBTASKS}
    before = {name: loss_of(task, own) for name, own in only.items()}
    for name, other in (SUBTASKS, SUBTASKS[::-1]):
        found = gradients(task, model, only[name])
        for key, gradient in found.items():
            idle = f".task_{other}." in key or (name == "tell" and "text_encoder" in key)  # captions have no question
            assert (gradient is None) == idle, key
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".task_tell." in key:
                parameter.mul_(-2)
    assert loss_of(task, only["ask"]) == before["ask"]
    assert loss_of(task, only["tell"]) != before["tell"]


@pytest.mark.parametrize("options", [{}, {"by_task": True}])
def test_gradient_checkpointing_changes_no_gradient(options: dict) -> None:
    """What is recomputed in the backward pass goes by the subtask of its forward pass."""
    found = []
    for checkpointing in (False, True):
        _, model, task = made(**options)
        if checkpointing:
            towers = [CONFIG.towers[name].layers for name in CONFIG.tasks["joint"].towers]
            base = model.get_base_model()  # type: ignore[operator]
            checkpoint_gradients(model, [layer for path in towers for layer in base.get_submodule(path).children()])
        found.append(gradients(task, model, two_subtasks()))
    assert_close(*found, model)


def test_a_call_that_says_no_subtask_is_refused() -> None:
    _, model, task = made(by_task=True)
    own = task.subtasks["ask"]
    batch = own.collate(two_subtasks(8, 0))
    with pytest.raises(ValueError, match="task-specific adapters for ask, tell"):
        own.loss(batch)
    with model.disable_adapter():  # type: ignore[operator]
        own.loss(batch)
    with for_task(model, "tell"):  # any subtask's adapters can be used for any
        own.loss(batch)


def test_adapters_by_subtask_switch_and_unload_like_any_other() -> None:
    backbone, model, task = made(by_task=True)
    samples = two_subtasks()
    first = loss_of(task, samples)
    base = loss_of(task_on(load(CONFIG, "joint", texts=TEXTS)), samples)
    model.add_adapter("another", copy.deepcopy(model.peft_config["default"]))  # type: ignore[operator, index]
    model.set_adapter("another")  # type: ignore[operator]
    assert loss_of(task, samples) == base  # new, hence as the frozen model
    model.set_adapter("default")  # type: ignore[operator]
    assert loss_of(task, samples) == first
    model.unload()  # type: ignore[operator]
    assert loss_of(task, samples) == base
    assert not any(module._forward_hooks for module in backbone.model.modules())
