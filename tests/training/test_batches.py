from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
import torch

from tests.training.conftest import SmallTask, make_model, make_samples
from vlatrain.config import UserError
from vlatrain.training import batches as module
from vlatrain.training.batches import SharedBatches, training_batches
from vlatrain.training.order import Order
from vlatrain.training.shares import EvaluationStopped


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_are_in_order_and_whole(workers: int) -> None:
    samples, task = make_samples(7), SmallTask(make_model())
    batches = SharedBatches("cpu", 3, workers)
    found = list(batches(samples, task.collate, lambda batch: batch["ids"]))
    assert found == [["s0", "s1", "s2"], ["s3", "s4", "s5"], ["s6"]]
    assert list(batches([], task.collate, lambda batch: batch["ids"])) == []
    assert list(batches.map(str, [3, 1, 2])) == ["3", "1", "2"]


def test_evaluation_stops_between_batches() -> None:
    calls = iter([False, False, True])
    batches = SharedBatches("cpu", 3, interrupted=lambda: next(calls))
    found = []
    with pytest.raises(EvaluationStopped):
        found.extend(batches(make_samples(9), SmallTask(make_model()).collate, lambda batch: batch["ids"][0]))
    assert found == ["s0", "s3"]


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_in_the_middle_loads_nothing_before_and_draws_alike(workers: int) -> None:
    samples, task = make_samples(10), SmallTask(make_model())
    order = Order(10, 3, seed=1)

    def stream(first: int, workers: int) -> list[tuple[list[str], torch.Tensor]]:
        passes = training_batches(order, samples, task.collate, range(first, 8), 0, workers, torch.device("cpu"))
        return [(batch["ids"], batch["x"]) for batch, _ in passes]

    whole, rest = stream(0, 0), stream(5, workers)
    assert [ids for ids, _ in rest] == [ids for ids, _ in whole[5:]]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(rest, whole[5:], strict=True))


def test_workers_do_the_loading() -> None:
    def collate(samples: object) -> dict:
        return {"ids": [], "pid": os.getpid()}

    batches = SharedBatches("cpu", 1, workers=2)
    assert os.getpid() not in batches(make_samples(4), collate, lambda batch: batch["pid"])


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGSTOP, r"trainer\.workers=1: process \d+, which loads images, is stopped"),
        (signal.SIGKILL, r"trainer\.workers=1: a process that loads images was killed .* set fewer"),
    ],
)
def test_a_worker_that_is_stopped_or_killed_is_named(
    number: int, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PATROL", 0.2)
    monkeypatch.setattr(module, "STOPPED_FOR", 0.5)

    def collate(samples: list[int]) -> dict[str, int]:
        if samples[0] == 3:
            os.kill(os.getpid(), number)
        return {"pid": os.getpid()}

    seen = []
    with pytest.raises(UserError, match=said):
        seen.extend(SharedBatches("cpu", 1, workers=1)([*range(6)], collate, lambda batch: batch["pid"]))
    assert len(seen) in (2, 3)  # a kill may come before what was loaded is handed over
    assert ("lets it go on" in caplog.text) == (number == signal.SIGSTOP)
    assert not psutil.pid_exists(seen[0]) or psutil.Process(seen[0]).status() == psutil.STATUS_ZOMBIE


def test_a_worker_that_goes_on_is_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Slow, and so told of; and stopped for a moment."""
    monkeypatch.setattr(module, "PATROL", 0.1)
    monkeypatch.setattr(module, "TOLD_AFTER", 0.2)

    def collate(samples: list[int]) -> dict[str, int]:
        if samples[0] == 1:
            time.sleep(0.5)
        if samples[0] == 2:
            os.system(f"(sleep 0.5; kill -CONT {os.getpid()}) &")
            os.kill(os.getpid(), signal.SIGSTOP)
        return {"id": samples[0]}

    found = SharedBatches("cpu", 1, workers=1)([*range(4)], collate, lambda batch: batch["id"])
    assert list(found) == [0, 1, 2, 3]
    assert "has loaded nothing for" in caplog.text
    assert "lets it go on" in caplog.text
