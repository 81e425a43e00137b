from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.conftest import make_samples
from vlatrain.tasks.base import Batch, Collate
from vlatrain.training import stopwatch
from vlatrain.training.batches import SharedBatches
from vlatrain.training.stopwatch import Stopwatch


def run(monkeypatch: pytest.MonkeyPatch, watch: Stopwatch, size: int, seconds: list[float]) -> list[list[str]]:
    """One pass over ten samples, whose batches take so long."""
    clock, takes = [0.0], iter(seconds)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock[0])
    collate: Collate = lambda samples: {"ids": [sample.id for sample in samples]}  # noqa: E731

    def compute(batch: Batch) -> Any:
        clock[0] += next(takes)
        return batch["ids"]

    return [*watch.timed(SharedBatches("cpu", size))(make_samples(10), collate, compute)]


def test_the_first_batch_does_not_count_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(torch.device("cpu"))
    seen = run(monkeypatch, watch, 4, [100.0, 2.0, 1.0])
    assert [name for ids in seen for name in ids] == [sample.id for sample in make_samples(10)], (
        "the batches are what they were"
    )
    assert watch.speed(10) == 2.0


def test_a_single_batch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(torch.device("cpu"))
    run(monkeypatch, watch, 10, [5.0])
    assert watch.speed(10) == 2.0


def test_passes_over_the_same_samples_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(torch.device("cpu"))
    assert watch.speed(10) == 0.0
    run(monkeypatch, watch, 5, [9.0, 1.0])  # 5 a second
    run(monkeypatch, watch, 5, [9.0, 4.0])  # 1.25 a second
    assert watch.speed(10) == pytest.approx(1.0)
