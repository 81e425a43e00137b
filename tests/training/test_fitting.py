"""Samples of a pass: what has room, against trying them all; tried on a device that has less; and what needs no asking."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from tests.backbones import composites
from tests.conftest import adapter_config, make_samples, small_config
from tests.training.conftest import SmallTask, make_config, make_model, same
from tests.training.conftest import make_samples as numbers
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, TrainConfig, TrainerConfig, UserError
from vlatrain.injection.attach import attach
from vlatrain.tasks import build
from vlatrain.training import fitting
from vlatrain.training.fitting import (
    dividing,
    divisors,
    fitted,
    largest,
    longest_batch,
    room_on,
    run_longest,
    tried_on_device,
    without_room,
)
from vlatrain.training.modes import trainable
from vlatrain.verbs.train import tries_passes

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("step", [1, 12, 32, 31])
def test_the_largest_pass_that_has_room(step: int) -> None:
    for constant, slope, square in ((100, 60, 0), (100, 10, 0), (50, 3, 2), (0, 1, 5), (100, 0, 0)):

        def peak(size: int, c: int = constant, s: int = slope, q: int = square) -> int:
            return c + max(c // 2, s * size + q * size**2)

        for room in range(0, 4000, 97):
            size, whole = largest(step, peak, room)
            fits = [one for one in divisors(step) if peak(one) <= room]
            assert whole == peak(step)
            assert size in divisors(step)
            assert size <= max(fits, default=1)
            if peak(1) > constant * 1.5 and not square:  # in proportion to the samples
                assert size == max(fits, default=1)


@pytest.mark.parametrize(("processes", "expected"), [(1, 16), (2, 8), (3, 1)])
def test_a_pass_divides_what_is_contrasted(processes: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "count", lambda: processes)
    assert dividing(32, 20, negatives=16) == expected
    assert dividing(32, 20, negatives=None) == 20


def config(task: str = "vqa", **trainer: Any) -> TrainConfig:
    model = small_config("blip")
    for name, served in model.tasks.items():
        served.samples_per_step = 12
        served.samples_per_contrast = 3 if name == "retrieval" else 0
    return TrainConfig(
        task=TaskConfig(name=task, points=["{vision,fusion,decoder}.*.*" if task == "vqa" else "fusion"]),
        model=model,
        adapter=adapter_config("bottleneck", dim=4),
        trainer=TrainerConfig(**{"batch_size": "auto", "accumulate": "auto", "device": "cpu", **trainer}),
    )


def resolved(made: TrainConfig, device: torch.device = CPU, precision: str = "fp32") -> tuple[Any, Any]:
    backbone = load(made.model, made.task.name, texts=composites.TEXTS)
    model = attach(backbone.model, made.adapter, sites(made.model, made.task.name, made.points))
    task = build(made.task, backbone, make_samples())
    trainer, peak = fitted(made, backbone, model, task, make_samples(), device, precision)
    assert peak is None or peak > 0
    return trainer.batch_size, trainer.accumulate


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        pytest.param({}, (12, 1), marks=pytest.mark.slow),
        ({"batch_size": 5}, (5, 1)),
        ({"batch_size": 5, "accumulate": 3}, (5, 3)),
        ({"accumulate": 3}, (4, 3)),
        ({"accumulate": 5}, (3, 5)),
    ],
)
def test_what_is_left_open_is_made_of_the_samples_of_a_step(trainer: dict[str, Any], expected: tuple[int, int]) -> None:
    assert resolved(config(**trainer)) == expected


def test_a_pass_of_a_cpu_has_a_fixed_room(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(fitting, "CPU_ROOM", 603e6)  # 600 of them are the process's
    size, passes = resolved(config())
    assert 1 < size < 12
    assert size * passes == 12
    assert f"{size} samples a pass, {passes} passes a step" in caplog.text


def test_negatives_of_a_contrast_stay_whatever_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (4e9, 1.0):
        monkeypatch.setattr(fitting, "CPU_ROOM", room)
        assert resolved(config("retrieval")) == (3, 4)
    made = config("retrieval")
    made.model.tasks["retrieval"].samples_per_contrast = 0
    assert resolved(made) == (12, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "free", "expected"),
    [
        ("vqa", 1e4, (1, 12)),
        *(pytest.param(task, 80e9, (12, 1), marks=pytest.mark.slow) for task in ("vqa", "retrieval")),
    ],
)
def test_on_a_gpu_what_is_free_decides(task: str, free: float, expected: tuple[int, int]) -> None:
    with mock.patch.object(torch.cuda, "mem_get_info", return_value=(free, 80e9)):
        assert room_on(GPU) == fitting.SHARE * free
        assert resolved(config(task), GPU, "bf16") == expected


def test_of_several_processes_the_smallest_pass_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "gather", lambda size: [size, 3])
    monkeypatch.setattr(fitting, "largest", lambda step, peak, room: (step, 0))
    monkeypatch.setattr(fitting, "room_on", lambda device: 80e9)
    assert resolved(config("retrieval"), GPU, "bf16") == (3, 4)


def test_nothing_is_asked_of_memory_where_numbers_are_given() -> None:
    task: Any = SimpleNamespace(in_batch_negatives=False)
    assert without_room(config(), task, CPU) is None
    assert without_room(config(batch_size=4), task, CPU) == (4, 1)


def test_passes_that_do_not_run_are_halved(caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def run(size: int) -> None:
        tried.append(size)
        if size > 5:
            raise torch.OutOfMemoryError

    assert tried_on_device(32, 16, run) == 4
    assert tried == [16, 8, 4]
    assert "a pass of 16 samples has no room" in caplog.text

    def full(size: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="gradient_checkpointing"):
        tried_on_device(4, 4, full)


def test_the_longest_batch_is_the_one_with_most_text() -> None:
    samples = make_samples()
    assert [one.id for one in longest_batch(samples, 2)] == ["green-1", "black-1"]


def test_a_loop_tries_its_longest_batch_and_trains_as_if_it_had_not(small: SimpleNamespace) -> None:
    """As on a GPU with room for two samples: half of half the pass that was predicted, the same steps, no number drawn."""
    plain = small.loop("plain", config=make_config(batch_size=2, accumulate=4), train=numbers(22), eval=[])
    plain.run()
    own = type(plain.task).loss

    def loss(self: Any, batch: Any) -> Any:
        if len(batch["ids"]) > 2:
            raise torch.OutOfMemoryError
        return own(self, batch)

    with mock.patch.object(type(plain.task), "loss", loss):
        loop = small.loop("tried", config=make_config(batch_size=8), train=numbers(22), eval=[], tries=True)
        assert (loop.config.trainer.batch_size, loop.config.trainer.accumulate) == (2, 4)
        assert loop.order.step_size == 8
        assert all(parameter.grad is None for parameter in loop.model.parameters())
        loop.run()
    assert same(trainable(loop.model), trainable(plain.model))


@pytest.mark.parametrize(
    ("told", "raised"),
    [("MPS backend out of memory (MPS allocated: 18.1 GB)", torch.OutOfMemoryError), ("shapes differ", RuntimeError)],
)
def test_apples_error_is_one_of_no_room(monkeypatch: pytest.MonkeyPatch, told: str, raised: type[Exception]) -> None:
    emptied = []
    monkeypatch.setattr(fitting, "move", lambda batch, device: batch)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append(True))
    model = make_model(False)
    task: Any = SmallTask(model)

    def loss(batch: Any) -> Any:
        raise RuntimeError(told)

    task.loss = loss
    with pytest.raises(RuntimeError, match=told[:12]) as error:
        run_longest(task, model, numbers(4), 2, torch.device("mps"), nullcontext)
    assert error.type is raised
    assert emptied == [True]


@pytest.mark.parametrize(
    ("size", "device", "expected"), [("auto", "cuda", True), ("auto", "cpu", False), (8, "cuda", False)]
)
def test_a_device_with_less_room_than_is_told_is_tried(
    monkeypatch: pytest.MonkeyPatch, size: Any, device: str, expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert tries_passes(TrainerConfig(batch_size=size, device=device)) is expected
