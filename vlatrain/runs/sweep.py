"""A sweep's folder: what came of each job, for the process that makes the table, and for the same sweep begun again.

Jobs may run in processes of their own, wherever a launcher puts them. So each leaves its outcome as `jobs/NUMBER.json` in the
sweep's folder, when it begins and when it ends. A sweep that goes on moves these files to `earlier/` first, and its jobs look there
for one with their overrides: their numbers may be others. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlatrain.config.errors import UserError
from vlatrain.config.files import with_checksum, without_checksum, write_file, write_json
from vlatrain.config.sweep import FIGURES
from vlatrain.runs.baselines import Beaten, beside_baseline
from vlatrain.runs.reading import Run

log = logging.getLogger("vlatrain")

BEGUN = "ended without saying why: killed, perhaps for want of memory, or not yet done"  # until a job says otherwise
PATIENCE = 60  # seconds that other processes wait for the first one to begin
UNTIL_SCORED = 600  # the same for what it has to write of a job that has ended for them
STOPPED = "stopped"  # by a signal: no fault of the job's


@dataclass
class Outcome:
    """What came of one job.

    Attributes:
        number: its place in the sweep.
        overrides: its Hydra overrides, each with a single value.
        folder: its run folder; None if it never had one.
        metrics: content of its `metrics.json`; empty if it failed.
        failure: why it failed, in one line; empty if it did not.
        seconds: wall time.
        left_out: why task, backbone and method do not fit, so that it was not run; empty if it was.
    """

    number: int
    overrides: list[str] = field(default_factory=list)
    folder: Path | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0
    left_out: str = ""

    @property
    def run(self) -> Run | None:
        """Its run, or evaluation; None if it never had a folder."""
        return Run(self.folder) if self.folder else None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do: it was scored, or does not fit."""
        return bool(self.left_out or (self.metrics and not self.failure))

    @property
    def ending(self) -> str:
        """Its failure as people are told of it; empty if it did not fail."""
        return self.failure if self.failure in ("", STOPPED) else f"failed: {self.failure}"

    @property
    def values(self) -> dict[str, str]:
        """The overrides by key."""
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {key: value for key, _, value in pairs}

    @property
    def metric(self) -> str:
        """Name of the headline metric; empty without one."""
        return str(self.metrics.get("metric") or "")

    @property
    def score(self) -> float | None:
        """The headline metric."""
        return self.figure(self.metric)

    @property
    def unit(self) -> str:
        """The unit of the headline metric; empty for a plain number."""
        return str((self.metrics.get("units") or {}).get(self.metric, ""))

    @property
    def baseline(self) -> Beaten | None:
        """The headline metric beside the best baseline; None without one."""
        return beside_baseline(self.metrics, self.metric)

    @property
    def scores(self) -> dict[str, float]:
        """All its metrics by name."""
        return {name: float(value) for name, value in (self.metrics.get("metrics") or {}).items()}

    @property
    def pruned(self) -> int | None:
        """The step at which it was stopped, as others had been better there; None: it was not."""
        step = (self.metrics.get("training") or {}).get("pruned")
        return int(step) if step is not None else None

    def figure(self, name: str) -> float | None:
        """A metric of the task by name, or one of `FIGURES`; None if there is none."""
        known = FIGURES.get(name)
        value = (self.metrics.get(known.group if known else "metrics") or {}).get(known.key if known else name)
        return float(value) if isinstance(value, (int, float)) else None


@dataclass(frozen=True)
class SweepFolder:
    """The files of a sweep by name.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def jobs(self) -> Path:
        """Folder: the outcome of each job, by its number."""
        return self.path / "jobs"

    @property
    def earlier(self) -> Path:
        """Folder: outcomes of before it was begun again, by their overrides."""
        return self.path / "earlier"

    @property
    def table(self) -> Path:
        """The table at its end."""
        return self.path / "sweep.json"

    @property
    def plain(self) -> Path:
        """The same for spreadsheets and plots."""
        return self.path / "sweep.csv"

    @property
    def seeds(self) -> Path:
        """Means and deviations over the seeds, where seeds varied."""
        return self.path / "seeds.csv"

    @property
    def ready(self) -> Path:
        """Says that it has begun."""
        return self.path / "ready"

    def log(self, number: int) -> Path:
        """What a job said that had no run folder yet."""
        return self.jobs / f"{number:04d}.log"

    def begin(self, resume: bool) -> None:
        """Make the folder ready for a sweep.

        Args:
            resume: whether it goes on where it stopped.

        Raises:
            UserError: it holds a sweep that is not to go on, or cannot be written.
        """
        before = [*self.jobs.glob("*.json"), *self.earlier.glob("*.json")]
        if before and not resume:
            raise UserError(
                f"hydra.sweep.dir={self.path}: holds a sweep of {len(before)} jobs; resume=auto goes on with it, another folder "
                "begins one anew"
            )
        try:
            self.jobs.mkdir(parents=True, exist_ok=True)
            for outcome in self.outcomes():
                write_json(_made(self.earlier / f"{_key(outcome.overrides)}.json"), _plain(outcome))
                (self.jobs / f"{outcome.number:04d}.json").unlink()
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): choose another hydra.sweep.dir"
            ) from error

    def announce(self, stamp: str) -> None:
        """Let the other processes of a launcher's know that the folder is ready: what they find in it decides what they run.

        Args:
            stamp: of this start, the same in all of them.
        """
        write_file(self.ready, stamp)

    def wait(self, stamp: str) -> None:
        """Wait for the first process to `announce` it.

        Raises:
            UserError: it has not.
        """
        for _ in range(int(PATIENCE / 0.1)):
            with suppress(OSError):
                if self.ready.read_text(encoding="utf-8") == stamp:
                    return
            time.sleep(0.1)
        raise UserError(f"{self.path}: the first process has not begun the sweep within {PATIENCE} s")

    def note(self, outcome: Outcome) -> None:
        """Write what came of a job, whole or not at all."""
        write_json(_made(self.jobs / f"{outcome.number:04d}.json"), _plain(outcome))

    def ended(self, number: int) -> Outcome:
        """What came of a job by the first process, for which the others wait: they have no scores of their own.

        Raises:
            UserError: it has not come to an end there.
        """
        for _ in range(int(UNTIL_SCORED / 0.1)):
            outcome = _read(self.jobs / f"{number:04d}.json")
            if outcome is not None and outcome.failure != BEGUN:
                return outcome
            time.sleep(0.1)
        raise UserError(f"{self.path}: the first process has not ended job {number} within {UNTIL_SCORED} s")

    def outcomes(self) -> list[Outcome]:
        """What the jobs have left, in their order."""
        found = (_read(file) for file in self.jobs.glob("*.json"))
        return sorted((outcome for outcome in found if outcome), key=lambda outcome: outcome.number)

    def all(self) -> list[Outcome]:
        """The same, with those of before the sweep was begun again."""
        return [*self.outcomes(), *(outcome for file in self.earlier.glob("*.json") if (outcome := _read(file)))]

    def before(self, overrides: Sequence[str]) -> Outcome | None:
        """What came of the job with these overrides before the sweep was begun again; None if it was not begun."""
        return _read(self.earlier / f"{_key(overrides)}.json")


def _key(overrides: Sequence[str]) -> str:
    """A name for a job's overrides. Whether a sweep goes on changes none of its jobs."""
    kept = sorted(override for override in overrides if not override.startswith("resume="))
    return hashlib.blake2b("\n".join(kept).encode(), digest_size=12).hexdigest()


def _made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _plain(outcome: Outcome) -> dict[str, Any]:
    return with_checksum({**asdict(outcome), "folder": str(outcome.folder) if outcome.folder else None})


def _read(file: Path) -> Outcome | None:
    """None where there is nothing, or nothing that could be an outcome, which is said."""
    try:
        values = without_checksum(json.loads(file.read_text(encoding="utf-8")))
        outcome = Outcome(**{**values, "folder": values["folder"] and Path(values["folder"])})
        if file.stem not in (f"{outcome.number:04d}", _key(outcome.overrides)):
            raise ValueError("is that of another job")
        return outcome
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is not believed (%s): a sweep that goes on does this job again", file, error)
        return None
