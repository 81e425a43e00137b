"""The course of a training, on disk."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.disk import room
from vlatrain.reporting.history import JsonLines


def record(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "lr": {"adapter": 0.1}, "grad_norm": None}


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("resumed", "expected"),
    [(5, [1, 2, 3, 4, 5, 6]), (3, [1, 2, 3, 6]), (0, [6])],
)
def test_lines_of_steps_done_again_go(tmp_path: Path, resumed: int, expected: list[int]) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    first = JsonLines(path)
    first.begin(0)
    for step in range(1, 6):
        first.write(record(step))
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # torn by a kill
    again = JsonLines(path)
    again.begin(resumed)
    again.write(record(6))
    assert steps(path) == expected
    assert json.loads(path.read_text().splitlines()[-1]) == record(6)


def test_a_failed_write_catches_up_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that is full for two records, the second of which would be torn: then all lines are there, in order."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    sink.begin(0)
    sink.write(record(1))
    with room(path.stat().st_size + 20):
        sink.write(record(2))
        sink.write(record(3))
        assert steps(path) == [1]
    sink.write(record(4))
    sink.close()
    assert steps(path) == [1, 2, 3, 4]
    assert sum("cannot be written" in message for message in caplog.messages) == 1


def test_an_evaluation_that_is_made_again_is_recorded_once(tmp_path: Path) -> None:
    for step in (0, 2):  # killed between the record and the checkpoint that would know of it
        lines = JsonLines(tmp_path / "metrics.jsonl")
        lines.begin(step)
        for record in ({"step": 2, "loss": 1.0}, {"step": 2, "eval/accuracy": 50.0})[step // 2 :]:
            lines.write(record)
    lines.write({"step": 3, "loss": 0.5})
    assert [set(json.loads(line)) - {"step"} for line in lines.path.read_text().splitlines()] == [
        {"loss"}, {"eval/accuracy"}, {"loss"},
    ]  # fmt: skip
