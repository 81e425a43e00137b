"""The jobs of a command: one, or those of a sweep, wherever a launcher runs them; and what is told when they have ended."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from vlatrain.cli.call import call, resolved
from vlatrain.cli.compose import Prepared, problems_of, typed
from vlatrain.cli.overrides import Request
from vlatrain.cli.registry import SCHEMAS, register_resolvers
from vlatrain.config.errors import UserError, all_incompatible
from vlatrain.config.printable import printable
from vlatrain.config.schema import AS_TRAIN
from vlatrain.reporting.console import BRIEF, RichConsole, print_sentence, report
from vlatrain.reporting.pages import report_at_end
from vlatrain.reporting.scores import headline
from vlatrain.reporting.sweep import finish, line, not_run
from vlatrain.runs import Command, Outcome, RunFolder, SweepFolder, job_name, new_name, run_folder, within
from vlatrain.runs.sweep import BEGUN, STOPPED

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vlatrain.config import TrainConfig

#: Keys that change nothing of what is computed before the first trained layer.
AFTER_PREFIX = (
    "seed=",
    "optim.",
    "adapter.dim=",
    "adapter.options.",
    "adapter.dropout=",
    "trainer.epochs=",
    "trainer.max_steps=",
)
SCORED = ("train", "eval")  # verbs whose jobs are told in a line each; those of the others are what they print


class Jobs:
    """The function Hydra calls once a job, and the end of them all. A launcher may call a copy in another process.

    Args:
        request: what was asked for.
        words: the command line as typed.
        check: a further check of each configuration.
        prepared: the request, made ready.
    """

    def __init__(
        self, request: Request, words: Sequence[str], check: Callable[[TrainConfig], list[str]], prepared: Prepared
    ) -> None:
        self.request, self.verb, self.check = request, request.verb, check
        self.swept, self.planned = prepared.swept, prepared.planned
        self.objectives = prepared.objectives
        self.words, self.overrides = list(words), list(request.overrides)  # as typed; the second of the job
        self.where = Path.cwd()  # relative paths are from here, even where Hydra changes the folder
        self.error: Exception | None = None
        self.stopped: Exception | None = None  # a training that a signal ended, after saving
        self.sweep: SweepFolder | None = None
        self.log: Path | None = None
        self.ended = self.failed = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        register_resolvers()  # this process may have composed nothing yet
        self.__dict__.update(state)

    @property
    def folder(self) -> Path | None:
        """The sweep's folder; None if it is no sweep."""
        return self.sweep.path if self.sweep else None

    @cached_property
    def stamp(self) -> str:
        """A name for the sweep, or for runs that have none; the same in all processes."""
        return new_name()

    def begin(self, folder: Path, notes: Sequence[str]) -> None:
        """Make ready for a sweep: its folder, and what is to be said first.

        Raises:
            UserError: the folder holds another sweep, or cannot be written.
        """
        self.sweep = SweepFolder(folder)
        if not _is_first():
            self.sweep.wait(self.stamp)
        else:
            self.sweep.begin("resume=auto" in self.request.overrides)
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                self.sweep.announce(self.stamp)
            many = f"{len(self.planned)} jobs" if self.planned else "as many jobs as the sweeper asks for"
            print(*notes, f"Sweep of {many}, in {folder}", sep="\n", flush=True)

    def run(self, composed: DictConfig) -> float | tuple[float, ...] | None:
        """One job. Errors are kept, not raised: the other jobs of a sweep go on, and Hydra adds nothing to them.

        Returns:
            The score of a job of a sweep, for a sweeper that goes by it, or its objectives; None if there is none.
        """
        settings = HydraConfig.get()
        with contextlib.chdir(self.where):
            if settings.mode == RunMode.MULTIRUN:
                return self._sweep_job(composed, settings)
            try:
                self._call(self._config(composed))
            except Exception as error:
                if hasattr(error, "exit_status"):
                    self.stopped = error
                else:
                    self.error = error
            return None

    def _config(self, composed: DictConfig) -> TrainConfig:
        config = typed(composed, SCHEMAS[self.verb])
        job = [str(text) for text in HydraConfig.get().overrides.task]
        if found := problems_of(config, self.request, job, self.check):  # a sweep's job, or values as ${hydra:job.num}
            raise UserError(found)
        return config

    def _call(self, config: TrainConfig, job: str = "", outcome: Outcome | None = None) -> Any:
        """Give a configuration to the verb.

        Args:
            config: the configuration.
            job: what tells a job of a sweep from the others.
            outcome: of such a job; where it has a folder, the job is begun again and goes on there.
        """
        if self.sweep is not None and self.verb != "train":
            job = f"{self.sweep.path.absolute().name}-{job}"  # another sweep's jobs may vary the same
        # over several machines a name is not made, but must be given
        config = resolved(self.verb, config, job, None if config.run.name or config.run.dir else self.stamp)
        if outcome is not None and self.verb == "train":
            config = within(config, outcome.folder) if outcome.folder else config
            outcome.folder = run_folder(config)
            self._note(outcome)
        self.log = RunFolder(run_folder(config)).log if self.verb not in AS_TRAIN else None
        alike = self._alike(outcome.number) if outcome else 1
        return call(self.verb, config, Command(self.words, self.overrides, self.folder, alike))

    def _sweep_job(self, composed: DictConfig, settings: Any) -> float | tuple[float, ...] | None:
        assert self.sweep is not None
        number = int(settings.job.num)
        overrides = self.overrides = [str(text) for text in settings.overrides.task]
        varied = [text for text in overrides if text.lstrip("+").partition("=")[0] in self.swept]
        before = self.sweep.before(overrides)
        if before is not None and before.done:
            score = "" if before.score is None else f", {before.metric} {before.score:.2f}"
            self._end(replace(before, number=number, overrides=overrides), " ".join(varied), f"as before{score}")
            return self._value(before)
        outcome = Outcome(number, overrides, before.folder if before else None, failure=BEGUN)
        self._note(outcome)
        self.log, start = None, time.monotonic()
        score = ""
        title = f"[{number + 1}] {' '.join(varied)}".rstrip()
        brief = BRIEF.set(title if self.verb in SCORED else "")
        if self.verb not in SCORED and _is_first():
            print(title, flush=True)
        try:
            config = self._config(composed)
            from vlatrain.backbones.reuse import reusing  # torch

            with reusing():
                result = self._call(config, job_name(number, varied), outcome)
            outcome.folder = getattr(result, "folder", None)
            outcome.metrics = getattr(result, "metrics", {}) if _is_first() else {}
            outcome.failure = ""
            score = headline(config, outcome.metrics)
        except UserError as error:
            if all_incompatible(error.problems):
                outcome.failure, outcome.left_out = "", "; ".join(error.problems)
            else:
                outcome.failure = "; ".join(error.problems) or "refused"
        except KeyboardInterrupt:
            outcome.failure = STOPPED
            raise
        except Exception as error:
            if hasattr(error, "exit_status"):
                self.stopped, outcome.failure = error, STOPPED
            else:
                outcome.failure = in_one_line(error)
                self.keep_traceback(error, self.sweep.log(number))
        finally:
            BRIEF.reset(brief)
            if outcome.folder is None and self.log is not None:
                outcome.folder = self.log.parent
            if outcome.folder is not None and not outcome.folder.is_dir():
                outcome.folder = None  # it was refused, and left nothing
            outcome.seconds = time.monotonic() - start
            self._end(outcome, " ".join(varied), score)
            _give_back_memory()
        if self.stopped is not None:
            raise KeyboardInterrupt  # ends the sweep; Hydra lets nothing else through
        return self._value(outcome)

    def _alike(self, number: int) -> int:
        """How many jobs from this one on differ from it in nothing that the frozen prefix depends on, as far as is known."""

        def before(job: Sequence[str]) -> list[str]:
            return [text for text in job if not text.lstrip("+").startswith(AFTER_PREFIX)]

        own = before(self.planned[number]) if number < len(self.planned) else None
        return max(1, sum(before(job) == own for job in self.planned[number:]))

    def _value(self, outcome: Outcome) -> float | tuple[float, ...] | None:
        """What a sweeper is given of a job, the same in all processes: those that choose by it must choose alike."""
        if not _is_first() and not self.planned and self.sweep is not None:
            outcome = self.sweep.ended(outcome.number)
        if outcome.failure or outcome.left_out:
            return None
        values = [outcome.figure(name) for name in self.objectives] or [outcome.score]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        return known[0] if len(known) == 1 else tuple(known)

    def _note(self, outcome: Outcome) -> None:
        """Write what came of a job to where the process that makes the table finds it."""
        if _is_first() and self.sweep is not None:
            self.sweep.note(outcome)

    def _end(self, outcome: Outcome, title: str, score: str) -> None:
        """Tell of a job that has ended."""
        self.failed = self.failed or bool(outcome.failure)
        self._note(outcome)
        if _is_first() and (self.verb in SCORED or outcome.failure or outcome.left_out):
            print_sentence(line(outcome, title, len(self.planned) or None, score), RichConsole())

    def outcomes(self) -> list[Outcome]:
        """What came of the jobs of a sweep, after its table; empty without a sweep, and in all processes but the first.

        Raises:
            UserError: nothing came of it, or the sweeper or launcher failed before any job did.
            KeyboardInterrupt: a signal ended it, after saving.
        """
        outcomes: list[Outcome] = []
        if self.sweep is not None and _is_first():
            outcomes = self.sweep.outcomes()
            finish(outcomes, self.sweep.path)
            if self.verb == "train" and "run.report=off" not in self.request.overrides:
                report_at_end(self.sweep.path)
            if self.ended and not outcomes:
                raise UserError(
                    f"no job has left its outcome in {self.sweep.jobs}: all need the disk that this process has"
                )
            if not self.ended and (told := not_run(self.planned, outcomes, self._again())):
                print(told)
        if reuse := sys.modules.get("vlatrain.backbones.reuse"):
            reuse.clear()  # of no use to anybody now
        if self.stopped is not None:
            raise self.stopped
        if isinstance(self.error, UserError):
            raise self.error
        if self.error is not None and not any(outcome.failure or outcome.left_out for outcome in outcomes):
            raise self.error
        if self.error is not None:
            report(UserError(f"the sweeper or launcher failed: {in_one_line(self.error)}"))
        elif outcomes and all(outcome.left_out for outcome in outcomes):
            raise UserError("none of the sweep's jobs fits: all were left out")
        return outcomes

    def finish(self) -> int:
        """Report what came of the jobs; the exit status.

        Raises:
            UserError: what `outcomes` raises.
        """
        try:
            outcomes = self.outcomes()
        except UserError:
            raise
        except Exception as error:
            if error is self.stopped:
                if self.sweep is None:  # else it has been said how to go on with all of it
                    print(printable(str(error)), file=sys.stderr)
                return int(error.exit_status)  # type: ignore[attr-defined]
            print(self.keep_traceback(error), end="", file=sys.stderr)
            return 1
        return int(self.failed or self.error is not None or any(outcome.failure for outcome in outcomes))

    def _again(self) -> str:
        """The command that goes on with the sweep."""
        words = [word for word in self.words if not word.startswith(("resume=", "hydra.sweep.dir="))]
        return shlex.join([*words, "resume=auto", f"hydra.sweep.dir={self.folder}"])

    def keep_traceback(self, error: Exception, instead: Path | None = None) -> str:
        """Write a traceback into the run's log; where there is no run folder yet, into another file. The traceback."""
        text = printable("".join(traceback.format_exception(error)))
        log = self.log if self.log is not None and self.log.parent.is_dir() else instead
        if log is not None:
            with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
                file.write(text)
            text += f"the log: {log}\n"
        return text


def _give_back_memory() -> None:
    """Let go of what a job has left: a model is part of cycles, which Python would keep while the next one is loaded, and what the
    allocator keeps would count as the next job's memory."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)


def in_one_line(error: Exception) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _is_first() -> bool:
    """Whether it is the only process of a training, or the first."""
    return os.environ.get("RANK", "0") == "0"
