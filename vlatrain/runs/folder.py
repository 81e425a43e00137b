"""A run's folder: its files by name, who is at work in it, and what was run there."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlatrain import __version__
from vlatrain.config.errors import UserError
from vlatrain.config.files import MANIFEST, PARTIAL, manifest_of, write_file, write_json


@dataclass(frozen=True)
class Command:
    """What was typed.

    Attributes:
        words: the command line.
        overrides: those of this job of it.
        sweep: the folder of the sweep that it belongs to; None: to none.
        alike: how many jobs of it, this one included, are to come that compute the same before anything that they train.
    """

    words: Sequence[str] = ()
    overrides: Sequence[str] = ()
    sweep: Path | None = None
    alike: int = 1


COMMAND: ContextVar[Command] = ContextVar("COMMAND", default=Command())  # noqa: B039, immutable


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, or of an evaluation of it, by name.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def about(self) -> Path:
        """Each start of it: the command line as typed, overrides, versions, commit, fingerprint of the data."""
        return self.path / "run.json"

    @property
    def adapter(self) -> Path:
        """Folder: what was trained, in PEFT's layout; of an exported run the folder itself."""
        return self.path if self.is_exported else self.path / "adapter"

    @property
    def is_exported(self) -> bool:
        """Whether it was made by `vlatrain export`, and holds what was trained beside the configuration, as the hub has it."""
        return (self.path / MANIFEST).is_file() and not self.about.is_file() and not (self.path / "adapter").is_dir()

    @property
    def checkpoints(self) -> Path:
        """Folder: `step_N`, each a checkpoint."""
        return self.path / "checkpoints"

    @property
    def processor(self) -> Path:
        """Folder: the processor of a random backbone."""
        return self.path / "processor"

    @property
    def constants(self) -> Path:
        """What baselines say by the training data, for evaluations afterwards."""
        return self.path / "baselines.json"

    @property
    def metrics(self) -> Path:
        """Scores, and what they depend on; a folder that has it is a finished run."""
        return self.path / "metrics.json"

    @property
    def history(self) -> Path:
        """The course of the training, a record a line."""
        return self.path / "metrics.jsonl"

    @property
    def data(self) -> Path:
        """The data report."""
        return self.path / "data.json"

    @property
    def log(self) -> Path:
        """What was said."""
        return self.path / "run.log"

    @property
    def report(self) -> Path:
        """The page of the run."""
        return self.path / "report.html"

    @property
    def evaluations(self) -> Path:
        """Folder: one for each evaluation afterwards."""
        return self.path / "evaluations"

    @property
    def owner(self) -> Path:
        """Which process is at work here."""
        return self.path / "owner.json"

    def predictions(self, split: str = "eval") -> Path:
        """Each evaluated sample with prediction, references and score; of the test data, and of the frozen model, in a file of its
        own."""
        return self.path / ("predictions.jsonl" if split == "eval" else f"predictions-{split}.jsonl")

    @property
    def images(self) -> Path:
        """Folder: evaluated images that were no files of their own, where they were asked for."""
        return self.path / "images"

    def seal(self, complete: bool = True) -> None:
        """Write down what the files that are read again are now: whoever reads them sees whether they have changed.

        Args:
            complete: whether all are written; else those that a training has from its start.
        """
        files = [self.config, self.about, self.constants, self.data]
        if complete:
            predictions = [self.predictions(), *sorted(self.path.glob(self.predictions("*").name))]
            files += [self.metrics, self.history, *predictions]
        write_file(self.path / MANIFEST, manifest_of(self.path, [file for file in files if file.is_file()]))

    def unseal(self) -> None:
        """Be about to write these files anew."""
        (self.path / MANIFEST).unlink(missing_ok=True)

    @property
    def holds_work(self) -> bool:
        """Whether there is something to lose: a checkpoint, what was trained, or scores."""
        return bool(steps_in(self.checkpoints)) or self.adapter.exists() or self.metrics.exists()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Be the only process at work in the folder, which is made if it is missing.

        Whatever ends the work before there is anything to lose and before a record was written, an error of the user's or a
        signal, takes the folder away again, so that the corrected command may use it.

        Raises:
            UserError: another process is at work in it, or it cannot be written.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._own()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): choose another run.dir") from error
        try:
            yield
        except (UserError, KeyboardInterrupt):
            self._leave(made)
            raise
        finally:
            self.owner.unlink(missing_ok=True)

    def _own(self) -> None:
        about = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        for _ in range(2):
            with suppress(FileExistsError), self.owner.open("x", encoding="utf-8") as file:
                json.dump(about, file)
                return
            if alive := self.at_work():
                raise UserError(f"{self.path} is being written by {alive}: wait for it, or choose another run.name")
            self.owner.unlink(missing_ok=True)  # of a process that was killed
        raise UserError(f"{self.path}: another process has just begun here: choose another run.name")

    def at_work(self) -> str:
        """The process at work here; empty: there is none any more."""
        try:
            owner = json.loads(self.owner.read_text(encoding="utf-8"))
            host, pid, started = str(owner["host"]), int(owner["pid"]), float(owner["started"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        if host != socket.gethostname():
            return f"process {pid} on {host} (if there is none any more, remove {self.owner})"
        return f"process {pid}" if abs(_started(pid) - started) < 1 else ""

    def _leave(self, made: Sequence[Path]) -> None:
        if self.holds_work or (self.history.exists() and self.history.stat().st_size):
            return
        own = (
            self.config,
            self.about,
            self.data,
            self.constants,
            self.log,
            self.history,
            self.owner,
            self.path / MANIFEST,
        )
        for file in own:
            file.unlink(missing_ok=True)
            file.with_name(file.name + PARTIAL).unlink(missing_ok=True)
        shutil.rmtree(self.processor, ignore_errors=True)
        with suppress(OSError):  # something of the user's is in it
            self.checkpoints.rmdir() if self.checkpoints.exists() else None
            for folder in made:
                folder.rmdir()

    def note_start(self, data: Mapping[str, str]) -> None:
        """Add a start to `run.json`.

        Args:
            data: by split, the fingerprint of its samples.
        """
        command = COMMAND.get()
        start = {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": list(command.words),
            "overrides": list(command.overrides),
            "folder": str(Path.cwd()),
            "commit": _commit(),
            "versions": versions(),
            "data": dict(data),
        }
        write_json(self.about, {"starts": [*self._starts(), start]})

    def note_resolved(self, values: Mapping[str, Any]) -> None:
        """Add to the last start in `run.json` what `auto` and open settings came to, by key. `config.yaml` has them as
        asked, but for the samples of a pass: a run that goes on keeps these."""
        *before, last = self._starts() or [{}]
        write_json(self.about, {"starts": [*before, {**last, "resolved": dict(values)}]})

    def _starts(self) -> list[Any]:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return list(json.loads(self.about.read_text(encoding="utf-8"))["starts"])
        return []

    def new_evaluation(self, split: str) -> RunFolder:
        """A new folder for an evaluation: `evaluations/SPLIT`, with a number behind it from the second on."""
        for number in range(1, 100_000):
            folder = self.evaluations / (split if number == 1 else f"{split}-{number}")
            with suppress(FileExistsError):
                folder.mkdir(parents=True)
                return RunFolder(folder)
        raise UserError(f"{self.evaluations} is full")


def versions() -> dict[str, str]:
    """Of Python and of the libraries that numbers depend on."""
    known = {"python": platform.python_version(), "vlatrain": __version__}  # which need not be installed
    for name in ("torch", "transformers", "peft", "accelerate"):
        with suppress(PackageNotFoundError):
            known[name] = version(name)
    return known


def steps_in(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints in a folder."""
    found = (re.fullmatch(r"step_(\d+)", path.name) for path in checkpoints.glob("step_*") if path.is_dir())
    return [int(match[1]) for match in found if match]


def _started(pid: int) -> float:
    """When a process was started, in seconds; 0: there is none."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def _commit() -> str | None:
    """The git commit of the working folder; None where there is none."""
    try:
        ran = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() or None
