"""The command line: verb -> Hydra -> typed configuration -> one call.

Hydra keeps its own arguments; ours are the verb in front, `run=FOLDER`, the help, and that everything wrong is said at
once before torch is imported. What fails later: a `UserError` is printed a line a problem, with status 2; an exception
with an `exit_status` is a training that a signal ended after saving, and gives its message and that status; anything
else is a bug or the machine's doing, keeps its traceback (in the run's log too) and gives status 1.

The jobs of a sweep may run in processes of a launcher's: what came of them is read from the files that they leave.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vlatrain import __version__
from vlatrain.cli import help as texts
from vlatrain.config.errors import UserError, all_incompatible
from vlatrain.verbs import VERBS

if TYPE_CHECKING:
    import argparse

    from omegaconf import DictConfig

    from vlatrain.cli.overrides import Request
    from vlatrain.config import TrainConfig
    from vlatrain.reporting.sweep import Outcome

GROUP_ORDER = ("task", "model", "adapter", "data", "optim", "trainer", "logger", "experiment")


def entry() -> None:
    """The console script."""
    # OpenMP threads that spin while they wait cost a shared machine many times what they save; read when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # PEFT imports it where it is installed; on a CPU it tells of the kernels that it goes without, and of casts
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `vlatrain --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def main(argv: Sequence[str]) -> int:
    """Run a command line.

    Args:
        argv: the arguments after the program's name.

    Returns:
        Exit status: 0, 1 (a bug, or a failed run of a sweep), 2 (the user's to mend) or 130 (interrupted).
    """
    try:
        verb, rest = split_verb(argv)
        if "--help" in rest or "-h" in rest:
            print(_help(argv, verb), end="")
            return 0
        if "--version" in rest:
            print(f"vlatrain {__version__}")
            return 0
        if verb == "cache":
            VERBS[verb].call(rest)
            return 0
        return _hydra(verb, rest, ["vlatrain", *argv])
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        report(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def split_verb(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, `train` if none is given, and the other arguments.

    Raises:
        UserError: a leading word that is no verb.
    """
    if not argv or "=" in argv[0] or argv[0].startswith(("-", "+", "~")):
        return "train", list(argv)
    if argv[0] not in VERBS:
        from vlatrain.config.keys import did_you_mean

        known = tuple(VERBS)
        raise UserError(f"{argv[0]}: no such verb; there are {', '.join(known)}{did_you_mean(argv[0], known)}")
    return argv[0], list(argv[1:])


def report(error: UserError) -> None:
    """Print a user's error to stderr, a line a problem."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    for problem in error.problems:
        console.print(Text("error ", style="bold red") + Text(problem, style="default"))


def _help(argv: Sequence[str], verb: str) -> str:
    from vlatrain.config.folder import conf_dir, options_of

    options = options_of(conf_dir(), GROUP_ORDER)
    return texts.of_verb(verb, options) if argv and argv[0] == verb else texts.overview(options)


def _hydra(verb: str, rest: list[str], words: list[str]) -> int:
    from hydra import main as hydra_main
    from hydra.errors import HydraException

    from vlatrain.cli.compose import Prepared, explained, prepare
    from vlatrain.cli.compose import run as run_alone
    from vlatrain.cli.overrides import Request, literal
    from vlatrain.cli.registry import register
    from vlatrain.config.folder import conf_dir

    arguments, flags = _parsed(rest)
    request = Request(verb, list(arguments.overrides), arguments.multirun, arguments.config_dir, arguments.config_name)
    tells = arguments.cfg or arguments.info or arguments.hydra_help
    if arguments.shell_completion or arguments.hydra_help or arguments.config_path:
        register()
        _place_verb(request)
        prepared = Prepared(request.overrides)
    else:
        prepared = prepare(request, _check_compatibility, whole=request.sweeps or bool(tells))
    overrides = prepared.overrides
    job = _Jobs(request, words, prepared.swept)
    decorated = hydra_main(version_base="1.3", config_path=str(conf_dir()), config_name=request.verb)(job.run)
    if arguments.shell_completion:
        _complete(decorated, [*flags, *overrides])
        return 0
    if request.sweeps and not tells:
        job.begin(Path(prepared.folder or f"outputs/sweeps/{job.stamp}"), prepared.notes)
        overrides.append(f"hydra.sweep.dir={literal(str(job.folder))}")
    with _argv([*flags, *overrides]), _raising():
        try:
            if request.sweeps or tells or arguments.config_path or arguments.experimental_rerun:
                decorated()
            else:
                run_alone(request, overrides, job.run)
            job.ended = True
        except KeyboardInterrupt:
            if job.stopped is None:
                raise
        except HydraException as error:
            job.error = UserError(explained(error, request.schema))
        except Exception as error:  # of a sweeper or a launcher; jobs keep theirs
            job.error = error
        finally:
            status = job.finish()
    return status


def _parsed(rest: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's arguments, and which of the words are not overrides. Overrides may stand before and after the flags."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; see vlatrain --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    arguments = parser.parse_intermixed_args(rest)
    left = list(arguments.overrides)
    flags: list[str] = []
    for word in reversed(rest):
        if word in left:
            left.remove(word)
        else:
            flags.insert(0, word)
    return arguments, flags


def _place_verb(request: Request) -> None:
    """Prepare a shell-completion query: the verb in the typed line chooses the primary and is taken out of the line."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) > 2 and words[1] in VERBS:
        request.verb = words[1]
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    from vlatrain.cli.registry import OF_RUN, register_run

    if request.verb in OF_RUN:
        register_run({}, "")


def _complete(decorated: Callable[[], Any], words: list[str]) -> None:
    """Answer a shell's query, without the options that only the configuration files themselves may use."""
    answer = io.StringIO()
    with _argv(words), contextlib.redirect_stdout(answer):
        decorated()
    print(re.sub(r"\S+=(?:\w+_schema|from_run)(?:\s|$)", "", answer.getvalue()), end="")


def _check_compatibility(config: TrainConfig) -> list[str]:
    """What keeps the method from its points, as far as descriptions tell. Imports no torch."""
    from vlatrain.backbones.compatibility import incompatibilities

    return incompatibilities(config)


class _Jobs:
    """The function Hydra calls once a job, and the end of them all. A launcher may call a copy in another process."""

    def __init__(self, request: Request, words: Sequence[str], swept: Sequence[str] = ()) -> None:
        from vlatrain.runs import new_name

        self.request, self.verb = request, request.verb
        self.swept = swept
        self.words, self.overrides = list(words), list(request.overrides)  # as typed; the second of the job
        self.stamp = new_name()
        self.error: Exception | None = None
        self.stopped: Exception | None = None  # a training that a signal ended, after saving
        self.folder: Path | None = None  # of the sweep
        self.log: Path | None = None
        self.ended = self.failed = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        from vlatrain.cli.registry import register_resolvers

        register_resolvers()  # this process may have composed nothing yet
        self.__dict__.update(state)

    def begin(self, folder: Path, notes: Sequence[str]) -> None:
        """Make ready for a sweep: its folder, and what is to be said first."""
        from vlatrain.reporting.sweep import clear

        self.folder = folder
        if _is_first():
            clear(folder)
            print(*(f"{note}\n" for note in notes), sep="", end="")

    def run(self, composed: DictConfig) -> float | None:
        """One job. Errors are kept, not raised: the other jobs of a sweep go on, and Hydra adds nothing to them.

        Returns:
            The score of a job of a sweep, for a sweeper that goes by it; None if there is none.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        settings = HydraConfig.get()
        if settings.mode != RunMode.MULTIRUN:
            try:
                self._call(self._config(composed), "")
            except Exception as error:
                if hasattr(error, "exit_status"):
                    self.stopped = error
                else:
                    self.error = error
            return None
        return self._sweep_job(composed, settings)

    def _config(self, composed: DictConfig) -> TrainConfig:
        from hydra.core.hydra_config import HydraConfig

        from vlatrain.cli.compose import problems_of, typed
        from vlatrain.cli.registry import SCHEMAS

        config = typed(composed, SCHEMAS[self.verb])
        job = [str(text) for text in HydraConfig.get().overrides.task]
        if found := problems_of(
            config, self.request, job, _check_compatibility
        ):  # a sweep's job, or values as ${hydra:job.num}
            raise UserError(found)
        return config

    def _call(self, config: TrainConfig, job: str) -> Any:
        from vlatrain.cli.call import call, resolved
        from vlatrain.runs import Command, RunFolder, run_folder

        config = resolved(self.verb, config, job, self.stamp)
        self.log = RunFolder(run_folder(config)).log if self.verb != "inspect" else None
        return call(self.verb, config, Command(self.words, self.overrides))

    def _sweep_job(self, composed: DictConfig, settings: Any) -> float | None:
        from vlatrain.reporting.sweep import BEGUN, JOBS, Outcome, announce
        from vlatrain.runs import job_name

        number = int(settings.job.num)
        overrides = self.overrides = [str(text) for text in settings.overrides.task]
        outcome = Outcome(number, overrides, failure=BEGUN)
        self._leave(outcome)
        varied = [text for text in overrides if text.lstrip("+").partition("=")[0] in self.swept]
        self.log = None
        start = time.monotonic()
        try:
            config = self._config(composed)
            announce(number, varied)
            result = self._call(config, job_name(number, varied))
            outcome.folder = getattr(result, "folder", None)
            outcome.metrics = getattr(result, "metrics", {}) if _is_first() else {}
            outcome.failure = ""
        except UserError as error:
            if all_incompatible(error.problems):
                outcome.failure, outcome.left_out = "", "; ".join(error.problems)
                print(f"left out: {' '.join(varied or overrides)}: {outcome.left_out}")
            else:
                outcome.failure = "; ".join(error.problems) or "refused"
                report(error)
        except Exception as error:
            if hasattr(error, "exit_status"):
                self.stopped, outcome.failure = error, "stopped"
            else:
                outcome.failure = _in_one_line(error)
                self._traceback(error, self.folder and self.folder / JOBS / f"{number:04d}.log")
        if outcome.folder is None and self.log is not None and self.log.parent.is_dir():
            outcome.folder = self.log.parent
        outcome.seconds = time.monotonic() - start
        self.failed = self.failed or bool(outcome.failure)
        self._leave(outcome)
        gc.collect()  # a job's model is part of cycles; left to itself, Python keeps it while the next is loaded beside it
        if self.stopped is not None:
            raise KeyboardInterrupt  # ends the sweep; Hydra lets nothing else through
        return outcome.score

    def _leave(self, outcome: Outcome) -> None:
        """Write what came of a job to where the process that makes the table finds it."""
        if _is_first():
            assert self.folder is not None
            outcome.save(self.folder)

    def finish(self) -> int:
        """Report what came of the jobs; the exit status."""
        outcomes: list[Outcome] = []
        if self.folder is not None and _is_first():
            from vlatrain.reporting.sweep import JOBS, finish, outcomes_in

            outcomes = outcomes_in(self.folder)
            finish(outcomes, self.folder)
            if self.ended and not outcomes:
                raise UserError(
                    f"no job has left its outcome in {self.folder / JOBS}: all need the disk that this process has"
                )
        if self.stopped is not None:
            print(self.stopped, file=sys.stderr)
            return int(self.stopped.exit_status)  # type: ignore[attr-defined]
        if isinstance(self.error, UserError):
            raise self.error
        if self.error is not None and any(outcome.failure or outcome.left_out for outcome in outcomes):
            report(UserError(f"the sweeper or launcher failed: {_in_one_line(self.error)}"))
            return 1
        if self.error is not None:
            self._traceback(self.error)
            return 1
        if outcomes and all(outcome.left_out for outcome in outcomes):
            raise UserError("none of the sweep's jobs fits: all were left out")
        return int(self.failed or any(outcome.failure for outcome in outcomes))

    def _traceback(self, error: Exception, instead: Path | None = None) -> None:
        """Print it and write it into the run's log; where there is no run folder yet, into another."""
        text = "".join(traceback.format_exception(error))
        print(text, end="", file=sys.stderr)
        log = self.log if self.log is not None and self.log.parent.is_dir() else instead
        if log is not None:
            with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
                file.write(text)
            print(f"the log: {log}", file=sys.stderr)


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _is_first() -> bool:
    """Whether it is the only process of a training, or the first."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def _raising() -> Iterator[None]:
    """Let Hydra raise its errors, instead of printing them and ending the process."""
    name = "HYDRA_FULL_ERROR"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({} if before is None else {name: before})


@contextlib.contextmanager
def _argv(words: list[str]) -> Iterator[None]:
    """Let Hydra's decorator read these arguments."""
    before = sys.argv
    sys.argv = [before[0], *words]
    try:
        yield
    finally:
        sys.argv = before
