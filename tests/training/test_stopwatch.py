from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.training.conftest import make_samples
from vlatrain.tasks.base import Batch, Collate
from vlatrain.training import stopwatch
from vlatrain.training.stopwatch import Stopwatch


def batches_of(size: int) -> Any:
    def batches(samples: Sequence[Any], collate: Collate) -> Iterator[Batch]:
        for start in range(0, len(samples), size):
            yield collate(samples[start : start + size])

    return batches


def run(monkeypatch: pytest.MonkeyPatch, watch: Stopwatch, size: int, seconds: list[float]) -> list[list[str]]:
    """One pass over ten samples, whose batches take so long."""
    clock = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock[0])
    seen = []
    collate: Collate = lambda samples: {"ids": [sample.id for sample in samples]}  # noqa: E731
    for batch, taken in zip(watch.timed(batches_of(size))(make_samples(10), collate), [*seconds, 0.0], strict=False):
        seen.append(batch["ids"])
        clock[0] += taken
    return seen


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
