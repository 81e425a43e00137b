"""What a run's folder holds, whatever of it is missing or damaged: a page is made of what there is, and says what there is not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlatrain.config import TrainConfig, UserError
from vlatrain.config.saved import typed
from vlatrain.config.spec import with_shipped_specs
from vlatrain.runs import RunFolder, find_config, is_run, runs_below
from vlatrain.runs.baselines import Beaten, beside_baseline
from vlatrain.runs.sweep import Outcome, SweepFolder

FINISHED, RUNNING, STOPPED, DAMAGED = "finished", "running", "stopped", "damaged"
MOST_RUNS = 500  # of a folder that are read; more are counted


@dataclass(frozen=True)
class Snapshot:
    """A run as its folder has it now.

    Attributes:
        folder: the run's.
        config: its configuration as plain values; empty where it cannot be read.
        metrics: the content of `metrics.json`; empty where there is none.
        history: the records of `metrics.jsonl` that can be read.
        about: the last start in `run.json`.
        problems: what of it could not be read, a sentence each.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    history: list[dict[str, Any]]
    about: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    @property
    def files(self) -> RunFolder:
        """Its files by name."""
        return RunFolder(self.folder)

    @property
    def started(self) -> Path:
        """The folder that it was started in: image paths may be from there."""
        return Path(str(self.about.get("folder") or "."))

    @property
    def state(self) -> str:
        """`finished`, `running`, `stopped` or `damaged`."""
        if self.metrics.get("metrics") is not None:
            return FINISHED
        if self.files.at_work():
            return RUNNING
        return DAMAGED if self.problems else STOPPED

    @property
    def state_in_words(self) -> str:
        """The state, and how far it came where it is not finished."""
        if self.state == FINISHED:
            return FINISHED
        total = (self.about.get("resolved") or {}).get("trainer.max_steps")
        steps = max((int(record["step"]) for record in self.history), default=0)
        return f"{self.state} at step {steps:,}" + (f" of {total:,}" if isinstance(total, int) else "")

    @property
    def metric(self) -> str:
        """Name of the headline metric."""
        return str(self.metrics.get("metric") or (self.config.get("task") or {}).get("metric") or "")

    @property
    def score(self) -> float | None:
        """The headline metric; None where there is none."""
        value = (self.metrics.get("metrics") or {}).get(self.metric)
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def task(self) -> str:
        """The task's name."""
        return self.named("task")

    def named(self, group: str) -> str:
        """What was chosen of a group: `vqa` of `task`."""
        return str((self.config.get(group) or {}).get("name") or self.metrics.get(group) or "?")

    def unit(self, name: str) -> str:
        """The unit of a score; empty for a plain number."""
        return str((self.metrics.get("units") or {}).get(name, ""))

    def number(self, group: str, key: str) -> float | None:
        """A number in `metrics.json`, such as that of speed; None where there is none."""
        value = (self.metrics.get(group) or {}).get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def beaten(self, name: str, split: str = "") -> Beaten | None:
        """A score beside the best of its baselines."""
        scored = self.metrics.get(split) or {} if split else self.metrics
        return beside_baseline(scored, name, self.higher_is_better(name))

    def higher_is_better(self, name: str) -> bool:
        """Whether more of a score is better."""
        return self._directions.get(name, True)

    @cached_property
    def _directions(self) -> dict[str, bool]:
        task = with_shipped_specs(dict(self.config.get("task") or {}))
        named = {"": task} | {
            f"{name}/": own for name, own in (task.get("subtasks") or {}).items() if isinstance(own, dict)
        }
        return {
            f"{subtask}{score['name']}": bool(score.get("higher_is_better", True))
            for subtask, own in named.items()
            for score in (own.get("spec") or {}).get("metrics") or []
        }

    def typed(self) -> TrainConfig | None:
        """The configuration as the dataclass that it was; None where this version cannot read it."""
        try:
            return typed(self.config, str(self.files.config)) if self.config else None
        except UserError:
            return None

    @property
    def bytes(self) -> int:
        """Size of the folder and all below it."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())

    @property
    def days(self) -> float:
        """Days since something of it was last written."""
        files = [self.files.metrics, self.files.history, self.files.about, self.files.config]
        return (time.time() - max((file.stat().st_mtime for file in files if file.exists()), default=0.0)) / 86_400


def snapshot(folder: Path) -> Snapshot:
    """Read a run's folder.

    Raises:
        UserError: it is no run's.
    """
    if not is_run(folder):
        what = "has no config.yaml, so it is no run" if folder.is_dir() else "there is no such folder"
        raise UserError(f"run={folder}: {what}")
    files, problems = RunFolder(folder), list[str]()
    config, said = find_config(folder)
    if said:
        problems.append(said)
    metrics = _json(files.metrics, problems)
    starts = _json(files.about, problems).get("starts") or [{}]
    history = [record for record in lines(files.history, problems) if isinstance(record.get("step"), int)]
    return Snapshot(folder, config or {}, metrics, history, starts[-1], problems)


def lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines; how many cannot be read is added to the problems. Nothing if there is no file."""
    broken = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    yield record
                else:
                    broken += 1
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror})")
    if broken:
        problems.append(f"{path.name}: {broken:,} lines cannot be read, and are left out")


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({' '.join(str(error).split())})")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no JSON object")
        return {}
    return value


@dataclass(frozen=True)
class Selection:
    """What a report is of.

    Attributes:
        folder: where it goes unless said otherwise.
        runs: the runs.
        failures: jobs of a sweep without a run, each with its overrides and what became of it.
        single: whether it is of one run, and not of a folder with one.
        beyond: runs of the folder that were not read.
    """

    folder: Path
    runs: list[Snapshot]
    failures: list[tuple[str, str]] = field(default_factory=list)
    single: bool = False
    beyond: int = 0


def select(folders: list[Path]) -> Selection:
    """The runs in folders: each a run's, a sweep's, or one with runs below it.

    Raises:
        UserError: a folder is none of these; all such are named.
    """
    problems = []
    for folder in folders:
        if not folder.is_dir():
            problems.append(f"run={folder}: there is no such folder")
        elif not is_run(folder) and not SweepFolder(folder).outcomes() and not runs_below(folder):
            problems.append(f"run={folder}: is neither a run, nor a sweep, nor a folder with runs in it")
    if problems:
        raise UserError(problems)
    if len(folders) == 1 and is_run(folders[0]):
        return Selection(folders[0], [snapshot(folders[0])], single=True)
    paths: dict[Path, None] = {}
    failures: list[tuple[str, str]] = []
    for folder in folders:
        outcomes = [] if is_run(folder) else SweepFolder(folder).outcomes()
        for outcome in outcomes:
            if outcome.folder and is_run(outcome.folder):
                paths.setdefault(outcome.folder)
            else:
                failures.append((" ".join(outcome.overrides), _ending(outcome)))
        for path in [folder] if is_run(folder) else [] if outcomes else runs_below(folder):
            paths.setdefault(path)
    runs = [snapshot(path) for path in [*paths][:MOST_RUNS]]
    return Selection(folders[0] if len(folders) == 1 else Path(), runs, failures, beyond=len(paths) - len(runs))


def _ending(outcome: Outcome) -> str:
    return f"left out: {outcome.left_out}" if outcome.left_out else outcome.ending or "its folder is gone"
