"""What trackers are given, and that none of them is a reason for a run to fail."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.commands import command, tiny_run
from tests.conftest import Plain
from tests.reporting.offline_wandb import sessions
from tests.reporting.test_history import record, steps
from vlatrain.config import EvalConfig, LoggerConfig, TrainConfig
from vlatrain.config.checks.settings import problems
from vlatrain.data.images import NoPicture
from vlatrain.data.sample import Sample
from vlatrain.reporting import trackers
from vlatrain.reporting.trackers import Forgiving, Outcome, add_to_run, flat, outcome_of, table_of, tracking
from vlatrain.runs import COMMAND, Command


def test_flat() -> None:
    values = {"step": 3, "loss": 0.5, "lr": {"head": 0.1}, "grad_norm": None, "note": "x", "done": True}
    assert flat(values) == {"step": 3, "loss": 0.5, "lr/head": 0.1}


def test_a_failing_tracker_is_told_once_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        calls = 0

        def begin(self, step: int) -> None:
            pass

        def write(self, record: Any) -> None:
            self.calls += 1
            raise ConnectionError("no route\nto host")

        def close(self, status: int) -> None:
            raise AssertionError("not called any more")

    broken = Broken()
    sink = Forgiving(broken, "wandb")
    sink.begin(0)
    sink.write(record(1))
    sink.write(record(2))
    sink.close(0)
    assert broken.calls == 1
    assert [message for message in caplog.messages if "wandb" in message] == [
        "wandb failed (ConnectionError: no route to host); the run goes on without it"
    ]


def test_a_tracker_that_cannot_start_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # not installed
    config = TrainConfig(logger=LoggerConfig(name="mlflow", also=["mlflow"]))
    with tracking(tmp_path) as trackers:
        sinks = trackers(config)
        assert [sink.name for sink in sinks] == ["metrics.jsonl", "mlflow"]
        for sink in sinks:
            sink.begin(0)
            sink.write(record(1))
            sink.report(Outcome({}))
    assert steps(tmp_path / "metrics.jsonl") == [1]
    assert [message.partition(" (")[0] for message in caplog.messages] == ["mlflow failed"]


def test_a_missing_package_is_refused_when_chosen_and_is_no_matter_to_an_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    logger = LoggerConfig(name="mlflow", also=["wandb"])
    assert [line for line in problems(TrainConfig(logger=logger)) if line.startswith("logger=")] == [
        "logger=mlflow: needs a package; pip install mlflow",
        "logger=wandb: needs a package; pip install 'vlatrain[wandb]'",
    ]
    assert not [line for line in problems(EvalConfig(logger=logger, source="run")) if line.startswith("logger=")]


def test_other_processes_record_nothing(tmp_path: Path) -> None:
    with tracking(tmp_path, main=False) as trackers:
        assert trackers(TrainConfig(logger=LoggerConfig(name="tensorboard"))) == []


def test_predictions_become_rows_with_thumbnails() -> None:
    large = SimpleNamespace(load=lambda: Image.new("RGB", (512, 128)))
    gone = SimpleNamespace(load=lambda: (_ for _ in ()).throw(FileNotFoundError("gone")))
    pictures = [Plain((1, 2, 3), 1), large, gone, NoPicture("text"), Plain((1, 2, 3), 1)]
    samples = [Sample(id=str(number), image=picture) for number, picture in enumerate(pictures)]  # type: ignore[arg-type]
    records = [
        {"id": "0", "prediction": "red", "references": ["red", "pink"], "score": 100.0},
        {"id": "1", "prediction": "blue", "references": [], "score": None, "confident": True},
        {"id": "2", "prediction": None, "score": 0.0},
        {"id": "3", "prediction": "a", "score": 1},
        {"id": "4"},
    ]
    table = table_of(records, samples, 4)
    assert table.columns == ["image", "id", "prediction", "references", "score", "confident"]
    assert [row[1:] for row in table.rows] == [
        ["0", "red", '["red", "pink"]', 100.0, None],
        ["1", "blue", "[]", None, "true"],
        ["2", None, None, 0.0, None],
        ["3", "a", None, 1, None],
    ]
    assert [row[0] and row[0].size for row in table.rows] == [(32, 32), (256, 64), None, None]


def test_an_outcome_has_the_scores_of_each_split_and_what_they_cost() -> None:
    metrics = {
        "metrics": {"accuracy": 90.0}, "test": {"metrics": {"accuracy": 80.0}}, "frozen": {"metrics": {"accuracy": 1.0}},
        "parameters": {"trainable": 5}, "memory": {"peak_mb": 7.0}, "speed": {"wall_s": 2.0}, "training": {"best_step": 4},
    }  # fmt: skip
    assert flat(outcome_of(metrics, {}, None).values) == {
        "eval/accuracy": 90.0, "test/accuracy": 80.0, "frozen/accuracy": 1.0, "parameters/trainable": 5, "memory/peak_mb": 7.0,
        "speed/wall_s": 2.0, "best_step": 4,
    }  # fmt: skip


def write_run(config: TrainConfig, folder: Path, first: int, last: int) -> None:
    with tracking(folder) as trackers:
        sinks = trackers(config)
        for sink in sinks:
            sink.begin(first - 1)
        for step in range(first, last + 1):
            for sink in sinks:
                sink.write(record(step))
        for sink in sinks:
            sink.report(Outcome({"test": {"accuracy": 75.0}}))


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(logger=LoggerConfig(name="tensorboard"))
    write_run(config, tmp_path, 1, 4)
    write_run(config, tmp_path, 3, 5)
    add_to_run(config, tmp_path, lambda: Outcome({"evaluations/eval": {"accuracy": 50.0}}))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert events.Scalars("lr/adapter")[0].value == pytest.approx(0.1)
    assert events.Scalars("test/accuracy")[-1].value == 75.0
    assert events.Scalars("evaluations/eval/accuracy")[0].value == 50.0
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5]


def end_by(error: Exception, config: TrainConfig, folder: Path) -> None:
    with tracking(folder) as trackers:
        for sink in trackers(config):
            sink.begin(2)
        raise error


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for key, value in {"WANDB_SILENT": "true", "WANDB_DATA_DIR": str(tmp_path / "staged")}.items():
        monkeypatch.setenv(key, value)


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_wandb_continues_the_same_run_and_shows_how_it_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Interrupted(Exception):  # noqa: N818, as the training's
        exit_status = 143

    logger = LoggerConfig(
        name="wandb",
        also=["tensorboard"],
        mode="offline",
        project="p",
        entity="team",
        tags=["a", "b"],
        notes="why",
        job_type="j",
    )
    config, folder = TrainConfig(logger=logger), tmp_path / "run"
    typed = COMMAND.set(Command(sweep=Path("outputs/sweeps/mine")))
    try:
        write_run(config, folder, 1, 2)
        for error in (Interrupted(), ValueError("broken")):
            with pytest.raises(type(error)):
                end_by(error, config, folder)
    finally:
        COMMAND.reset(typed)
    assert not [message for message in caplog.messages if "failed" in message]
    found = sessions(folder)
    assert {one.run.run_id for one in found} == {json.loads((folder / "wandb.json").read_text())["id"]}
    for run in (one.run for one in found):
        assert (run.project, run.entity, run.run_group, run.job_type) == ("p", "team", "mine", "j")
        assert (run.display_name, list(run.tags), run.notes) == ("run", ["a", "b"], "why")
    assert found[0].config["adapter"]["name"] == config.adapter.name
    assert found[0].summary["test/accuracy"] == 75.0
    assert [(one.exit_code, one.preempting) for one in found] == [(0, False), (143, True), (1, False)]
    assert any((folder / "tensorboard").glob("events*"))


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_wandb_gets_scores_images_and_the_adapter_and_what_came_after(tmp_path: Path) -> None:
    """A run, its evaluation, and what it is asked: all of the same id there."""
    run = tiny_run(
        tmp_path / "run", "vqa", "logger=wandb", "logger.mode=offline", "logger.group=mine", "logger.table=4"
    )
    assert command("eval", f"run={run}", "trainer.threads=1") == 0
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    asked = ("predict", f"run={run}", f"image={tmp_path / 'photo.png'}", "question=what is it?", "trainer.threads=1")
    assert command(*asked) == 0  # to nowhere
    assert command(*asked, "logger=wandb", "logger.mode=offline") == 0
    assert command("eval", f"run={run}", "trainer.threads=1", "logger=none") == 0
    trained, evaluated, predicted = sessions(run)
    assert len({one.run.run_id for one in (trained, evaluated, predicted)}) == 1
    assert trained.run.run_group == "mine"
    metrics = json.loads((run / "metrics.json").read_text())
    assert trained.summary["parameters/trainable"] == metrics["parameters"]["trainable"]
    assert trained.summary["memory/peak_mb"] == metrics["memory"]["peak_mb"]
    assert trained.summary["eval/accuracy"] == metrics["metrics"]["accuracy"]
    assert [one.exit_code for one in (trained, evaluated, predicted)] == [0, 0, 0]

    first = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()][:4]
    for session, name in ((trained, "predictions/eval"), (evaluated, "evaluations/eval")):
        table = session.table(name)
        assert [row[table["columns"].index("prediction")] for row in table["data"]] == [
            one["prediction"] for one in first
        ]
        assert all(cell["_type"] == "image-file" for cell, *_ in table["data"])
    assert predicted.table("predictions/asked")["data"][0][0]["width"] == 40
    assert evaluated.summary["evaluations/eval/accuracy"] == metrics["metrics"]["accuracy"]

    (adapter,) = trained.artifacts("model")
    sent = {entry.path: Path(entry.local_path).read_bytes() for entry in adapter.manifest.contents}
    files = [file for file in (run / "adapter").rglob("*") if file.is_file()]
    assert sent == {str(file.relative_to(run / "adapter")): file.read_bytes() for file in files}
    assert not evaluated.artifacts("model")


@pytest.mark.parametrize("text", ["", "{}", '{"id": "ab', "\udcff"])
def test_a_damaged_id_begins_a_run_anew_there(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "wandb.json"
    assert trackers._id_in(file) == ""
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert trackers._id_in(file) == ""
    assert "cannot be read" in caplog.text
