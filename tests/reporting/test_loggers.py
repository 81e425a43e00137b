from __future__ import annotations

import importlib.util
import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.disk import room
from vlatrain.config import LoggerConfig, UserError
from vlatrain.reporting import loggers
from vlatrain.reporting.loggers import Forgiving, JsonLines, check, flat, make_sinks


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


def test_flat() -> None:
    values = {"step": 3, "loss": 0.5, "lr": {"head": 0.1}, "grad_norm": None, "note": "x", "done": True}
    assert flat(values) == {"step": 3, "loss": 0.5, "lr/head": 0.1}


def test_a_failing_logger_is_told_once_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        calls = 0

        def begin(self, step: int) -> None:
            pass

        def write(self, record: Any) -> None:
            self.calls += 1
            raise ConnectionError("no route")

        def close(self) -> None:
            raise AssertionError("not called any more")

    broken = Broken()
    sink = Forgiving(broken, "wandb")
    sink.begin(0)
    sink.write(record(1))
    sink.write(record(2))
    sink.close()
    assert broken.calls == 1
    assert [message for message in caplog.messages if "wandb" in message] == [
        "wandb failed (ConnectionError: no route); the training goes on without it"
    ]


def test_a_missing_package_or_unknown_logger_is_told_when_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(LoggerConfig()) == []
    assert check(LoggerConfig(name="mlflow")) == ["logger.name=mlflow is unknown; there are none, wandb, tensorboard"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert check(LoggerConfig(name="wandb")) == ["logger=wandb needs the package wandb: pip install wandb"]
    with pytest.raises(UserError, match="pip install tensorboard"):
        make_sinks(LoggerConfig(name="tensorboard"), tmp_path, {})


def test_other_processes_record_nothing(tmp_path: Path) -> None:
    assert make_sinks(LoggerConfig(), tmp_path, {}, main=False) == []


def write_run(config: LoggerConfig, folder: Path, first: int, last: int) -> None:
    sinks = make_sinks(config, folder, {"adapter": {"dim": 8}})
    for sink in sinks:
        sink.begin(first - 1)
    for step in range(first, last + 1):
        for sink in sinks:
            sink.write(record(step))
    for sink in sinks:
        sink.close()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_run(LoggerConfig(name="tensorboard"), tmp_path, 1, 4)
    write_run(LoggerConfig(name="tensorboard"), tmp_path, 3, 5)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert events.Scalars("lr/adapter")[0].value == pytest.approx(0.1)
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_wandb_offline_continues_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = LoggerConfig(name="wandb", mode="offline")
    with caplog.at_level(logging.WARNING):
        write_run(config, tmp_path, 1, 2)
        write_run(config, tmp_path, 3, 4)
    assert not [message for message in caplog.messages if "wandb failed" in message]
    identity = json.loads((tmp_path / "wandb.json").read_text())["id"]
    sessions = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(sessions) == 2
    assert all(f"-{identity}" in name for name in sessions)


def test_a_failed_write_catches_up_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that is full for two records, the second of which would be torn: then all lines are there, in order."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = tmp_path / "metrics.jsonl"
    sink = make_sinks(LoggerConfig(), tmp_path, {})[0]
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


@pytest.mark.parametrize("text", ["", "{}", '{"id": "ab', "\udcff"])
def test_a_damaged_id_begins_a_run_anew_there(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "wandb.json"
    assert loggers._id_in(file) == ""
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert loggers._id_in(file) == ""
    assert "cannot be read" in caplog.text
