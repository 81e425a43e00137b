"""The loss on evaluation data and the frozen model: both change nothing of what is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import adapter_config, make_samples, small_config
from tests.training.conftest import SmallTask, captioning_with_adapters, load_adapter, make_config, make_model, same
from tests.training.test_loop import Records, Scripted
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig
from vlatrain.injection.attach import attach
from vlatrain.reporting.history import JsonLines
from vlatrain.tasks import build
from vlatrain.training import rng
from vlatrain.training.batches import SharedBatches
from vlatrain.training.validation import mean_loss, without_adapters


def loss_of(task: Any, samples: Sequence[Any], size: int, **settings: Any) -> float:
    task_model = getattr(task, "model", None) or task.backbone.model
    task_model.eval()
    with torch.no_grad(), rng.preserved():
        return mean_loss(task, samples, SharedBatches("cpu", size, **settings))


def test_it_is_the_mean_over_the_samples() -> None:
    task = captioning_with_adapters()
    samples = make_samples()[:7]
    with torch.no_grad():
        expected = [float(task.loss(task.collate([sample]))) for sample in samples]
    assert loss_of(task, samples, 3) == pytest.approx(sum(expected) / 7, rel=1e-4)


@pytest.mark.parametrize("name", ["vilt", "blip"])
def test_wrong_pairs_are_drawn_alike_each_time(name: str) -> None:
    """ViLT's are drawn in loading, BLIP's hard ones on the device."""
    backbone = load(small_config(name), "retrieval", texts=[text for s in make_samples() for text in s.captions])
    config = TaskConfig("retrieval", metric="mean_recall", negatives=2)
    task = build(config, backbone, make_samples())
    found = []
    for seed in (1, 2):
        rng.seed_everything(seed)
        before = rng.capture()
        found.append(loss_of(task, make_samples(), 4))
        assert rng.capture() == before
    assert found[0] == found[1]
    assert found[0] > 0


def test_a_training_with_it_is_bit_for_bit_the_one_without(small: SimpleNamespace) -> None:
    sink = Records()
    for name, more in (("without", {}), ("with", {"eval_loss": True, "eval_frozen": True})):
        config = make_config(eval_every=3, **more)
        model = make_model()
        small.loop(name, config=config, model=model, task=SmallTask(model), sinks=[sink] if more else []).run()
    assert same(*(load_adapter(small.folder / name) for name in ("without", "with")))
    losses = [record["eval/loss"] for record in sink.records if "eval/loss" in record]
    assert len(losses) == len(sink.steps("eval/accuracy"))
    assert all(0 < loss < 2 for loss in losses)
    assert len(set(losses)) > 1


def test_a_loss_that_is_not_finite_is_no_number(small: SimpleNamespace) -> None:
    model = make_model()
    task = SmallTask(model)
    task.poison = "s100"  # of the evaluation data
    sink = Records()
    small.loop(config=make_config(eval_loss=True, epochs=1), model=model, task=task, sinks=[sink]).run()
    assert [record["eval/loss"] for record in sink.records if "eval/loss" in record] == [None]


def test_the_frozen_model_is_evaluated_once_before_the_first_step(small: SimpleNamespace, caplog: Any) -> None:
    def loop(**trainer: Any) -> tuple[Any, Scripted]:
        model = make_model()
        task = Scripted(model, [10.0, 30.0, 20.0, 40.0])
        sink = JsonLines(small.folder / "metrics.jsonl")
        return small.loop(
            config=make_config(max_steps=4, eval_every=2, **trainer), model=model, task=task, sinks=[sink]
        ), task

    first, task = loop(eval_frozen=True)
    result = first.run()
    assert (result.frozen, result.evaluations, result.best_step) == ({"accuracy": 10.0}, 2, 2)
    fresh = {name: p for name, p in make_model().named_parameters() if p.requires_grad}
    assert same(task.weights[0], fresh)
    records = [json.loads(line) for line in (small.folder / "metrics.jsonl").read_text().splitlines()]
    assert records[0] == {"step": 0, "epoch": 0.0, "frozen/accuracy": 10.0}
    again, task = loop(eval_frozen=True)
    assert again.run().frozen == {"accuracy": 10.0}, "it is in the checkpoint"
    assert len(task.weights) <= 1


def test_a_training_that_began_without_it_says_so(small: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    small.loop(config=make_config(max_steps=2)).run()
    caplog.set_level("WARNING", "vlatrain")
    assert small.loop(config=make_config(max_steps=2, eval_frozen=True)).run().frozen is None
    assert "trainer.eval_frozen: this training began without it" in caplog.text


@pytest.mark.parametrize("method", ["bottleneck", "lora", "vera"])
def test_without_adapters_a_model_is_the_frozen_one_and_what_trains_stays_so(method: str) -> None:
    config = small_config("blip")
    task = TaskConfig("captioning", metric="cider_d")
    backbone = load(config, "captioning", texts=[text for s in make_samples() for text in s.captions])
    work = build(task, backbone)
    with torch.no_grad():
        frozen = float(work.loss(work.collate(make_samples())))
    model = attach(backbone.model, adapter_config(method), sites(config, "captioning", ["decoder.*.*"])).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    trains = [parameter.requires_grad for parameter in model.parameters()]

    def loss() -> float:
        with torch.no_grad():
            return float(work.loss(work.collate(make_samples())))

    adapted = loss()
    assert adapted != pytest.approx(frozen, rel=1e-5)
    with without_adapters(model):
        assert loss() == pytest.approx(frozen, rel=1e-6)
        assert [parameter.requires_grad for parameter in model.parameters()] == trains
    assert [parameter.requires_grad for parameter in model.parameters()] == trains
    assert loss() == adapted
    with without_adapters(nn.Linear(2, 2)):
        pass  # full fine-tuning: there is nothing to take out
