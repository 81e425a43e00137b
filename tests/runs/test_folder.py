"""A run's folder: one process at work in it, nothing left of a refused start, each start noted, each evaluation in its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import command, tiny_run
from vlatrain.config import UserError
from vlatrain.runs import COMMAND, Command, Run, RunFolder, list_runs
from vlatrain.runs.folder import _started


def owned_by(folder: RunFolder, pid: int, host: str | None = None, started: float | None = None) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    owner = {"host": host or socket.gethostname(), "pid": pid, "started": _started(pid) if started is None else started}
    folder.owner.write_text(json.dumps(owner))


def left_by(files: RunFolder, error: BaseException, *names: str) -> None:
    """Begin in a folder, write some files, and end so."""

    def begin() -> None:
        with files.taken():
            for name in names:
                (files.path / name).parent.mkdir(parents=True, exist_ok=True)
                (files.path / name).write_text("x")
            raise error

    with pytest.raises(type(error)):
        begin()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "run")
    with files.taken(), pytest.raises(UserError, match=f"is being written by process {os.getpid()}"), files.taken():
        pass
    with files.taken():  # it is free again
        assert files.owner.exists()
    assert not files.owner.exists()


def test_a_killed_process_is_no_owner(tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "run")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for wrong in ("{", '{"pid": 1}'):
        owned_by(files, ended.pid, started=1.0)
        files.owner.write_text(wrong)
        with files.taken():
            pass
    owned_by(files, ended.pid, started=1.0)
    with files.taken():
        pass
    owned_by(files, os.getpid(), started=1.0)  # another process that has got the same number
    with files.taken():
        pass
    owned_by(files, 1, "elsewhere")
    with pytest.raises(UserError, match=r"process 1 on elsewhere \(if there is none any more, remove .*owner.json"):
        files.taken().__enter__()


@pytest.mark.parametrize("error", [UserError("refused"), KeyboardInterrupt()])
def test_a_start_that_came_to_nothing_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "a" / "b" / "run")
    left_by(files, error, "config.yaml", "run.log", "processor/vocab.txt")
    assert not (tmp_path / "a").exists()
    files.path.mkdir(parents=True)
    (files.path / "notes.txt").write_text("the user's own")
    left_by(files, error, "run.log")
    assert [path.name for path in files.path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("checkpoints/step_3/state.json", UserError("")),
        ("adapter/adapter_config.json", UserError("")),
        ("metrics.jsonl", UserError("the loss of step 7 is not finite")),
        ("run.log", RuntimeError()),
    ],
)
def test_work_and_the_log_of_a_bug_stay(name: str, error: BaseException, tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "run")
    left_by(files, error, name, "run.log")
    assert files.log.exists()
    assert not files.owner.exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*: choose another run\.dir"):
        RunFolder(tmp_path / "file" / "run").taken().__enter__()


def test_each_start_is_noted(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    token = COMMAND.set(Command(["vlatrain", "seed=1"], ["seed=1"]))
    files.note_start({"train": "3 samples, ab"})
    COMMAND.reset(token)
    files.note_start({})
    first, second = json.loads(files.about.read_text())["starts"]
    assert (first["command"], first["overrides"], first["data"]) == (
        ["vlatrain", "seed=1"], ["seed=1"], {"train": "3 samples, ab"},
    )  # fmt: skip
    assert {"python", "torch", "vlatrain"} <= first["versions"].keys()
    assert second["command"] == []
    files.note_resolved({"trainer.device": "cpu"})
    assert [start.get("resolved") for start in json.loads(files.about.read_text())["starts"]] == [
        None,
        {"trainer.device": "cpu"},
    ]


def test_evaluations_are_numbered(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    names = [files.new_evaluation(split).path.name for split in ("eval", "test", "eval", "eval")]
    assert names == ["eval", "test", "eval-2", "eval-3"]


@pytest.mark.slow
def test_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    words = [f"run.dir={folder}", "data=files", "data.train=no.jsonl", "data.eval=no.jsonl"]
    assert command(*words) == 2
    assert not folder.exists()
    run = Run(tiny_run(folder, "vqa"))  # the corrected command into the same folder
    assert json.loads(run.files.about.read_text())["starts"][0]["command"][0] == "vlatrain"
    assert run.metrics["data"]["train"] != run.metrics["data"]["eval"]
    assert run.history[-1]["step"] == run.metrics["training"]["steps"]
    for seed in (0, 1):
        assert command("eval", f"run={folder}", f"data.seed={seed}") == 0
    assert [found.folder.name for found in run.evaluations] == ["eval", "eval-2"]
    assert [found.config["data"]["seed"] for found in run.evaluations] == [0, 1]
    assert len(run.evaluations[0].predictions) == run.evaluations[0].metrics["samples"]
    assert [found.folder for found in list_runs(tmp_path)] == [folder]
    capsys.readouterr()
    assert command("eval", f"run={folder}", f"output={run.evaluations[0].folder}") == 2
    assert "holds an evaluation already" in capsys.readouterr().err
