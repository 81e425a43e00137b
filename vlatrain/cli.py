"""The command line: verb -> Hydra -> typed configuration -> one call.

Hydra keeps its own arguments; what is ours is the verb in front, `run=FOLDER`, the help, and that everything wrong is said at
once before torch is imported. What fails later: a `UserError` is printed a line a problem, with status 2; anything else is a bug or
the machine's doing, keeps its traceback (in the run's log too, where there is one) and gives status 1; Ctrl-C gives 130.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatrain import __version__
from vlatrain.config import help as texts
from vlatrain.config.errors import UserError

if TYPE_CHECKING:
    import argparse

    from omegaconf import DictConfig

    from vlatrain.config import TrainConfig
    from vlatrain.config.compose import Request
    from vlatrain.reporting.sweep import Outcome

GROUP_ORDER = ("task", "model", "adapter", "data", "optim", "trainer", "logger", "experiment")
CALLS = {
    "train": ("vlatrain.training", "train"),
    "eval": ("vlatrain.inference", "evaluate_run"),
    "predict": ("vlatrain.inference", "predict"),
    "inspect": ("vlatrain.reporting", "inspect"),
}


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


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
        return _hydra(verb, rest)
    except UserError as error:
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
    if argv[0] not in texts.VERBS:
        from vlatrain.config.keys import did_you_mean

        known = tuple(texts.VERBS)
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


def _hydra(verb: str, rest: list[str]) -> int:
    from hydra import main as hydra_main

    from vlatrain.config.compose import Prepared, Request, prepare, register
    from vlatrain.config.folder import conf_dir

    arguments, flags = _parsed(rest)
    request = Request(verb, list(arguments.overrides), arguments.multirun, arguments.config_dir, arguments.config_name)
    if arguments.shell_completion or arguments.hydra_help or arguments.config_path:
        register()
        _place_verb(request)
        prepared = Prepared(request.overrides)
    else:
        prepared = prepare(request, _check_points)
    overrides = prepared.overrides
    job = _Jobs(verb, prepared.swept)
    if arguments.multirun and not any(text.startswith("hydra.sweep.dir=") for text in overrides):
        overrides.append(f"hydra.sweep.dir=outputs/sweeps/{job.stamp}")
    decorated = hydra_main(version_base="1.3", config_path=str(conf_dir()), config_name=request.verb)(job.run)
    with _argv([*flags, *overrides]):
        try:
            decorated()
        finally:
            failed = job.finish()
    return failed


def _parsed(rest: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's arguments, and which of the words are not overrides. Overrides may stand before and after the flags."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    arguments = parser.parse_intermixed_args(rest)
    left = list(arguments.overrides)
    flags = []
    for word in reversed(rest):
        if word in left:
            left.remove(word)
        else:
            flags.insert(0, word)
    return arguments, flags


def _place_verb(request: Request) -> None:
    """Prepare a shell-completion query: the verb in the typed line chooses the primary and is taken out of the line."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) > 2 and words[1] in texts.VERBS:
        request.verb = words[1]
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    if request.verb in ("eval", "predict"):
        from vlatrain.config.compose import register_run

        register_run({}, "")


def _check_points(config: TrainConfig) -> list[str]:
    """Problems of the point patterns, which only the backbone's description can tell. Imports no torch."""
    if config.adapter.name in ("full", "none"):
        return []
    from vlatrain.backbones.describe import stacks
    from vlatrain.injection.points import select

    try:
        select(config.points, stacks(config.model, config.task.name))
    except UserError as error:
        return error.problems
    return []


class _Jobs:
    """The function Hydra calls once a job, and what came of each."""

    def __init__(self, verb: str, swept: Sequence[str] = ()) -> None:
        from vlatrain.config.paths import new_name

        self.verb = verb
        self.swept = swept
        self.stamp = new_name()
        self.error: Exception | None = None
        self.outcomes: list[Outcome] = []
        self.folder: Path | None = None
        self.log: Path | None = None

    def run(self, composed: DictConfig) -> None:
        """One job. Errors are kept, not raised: the other jobs of a sweep go on, and Hydra adds nothing to them."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        settings = HydraConfig.get()
        if settings.mode != RunMode.MULTIRUN:
            try:
                self._call(composed, "")
            except Exception as error:
                self.error = error
            return
        self._sweep_job(composed, settings)

    def _call(self, composed: DictConfig, job: str) -> Any:
        from vlatrain.config.compose import SCHEMAS, typed
        from vlatrain.config.paths import name_run, run_folder

        config = typed(composed, SCHEMAS[self.verb])
        if self.verb == "train":
            name_run(config, job, self.stamp)
        self.log = run_folder(config) / "run.log" if self.verb != "inspect" else None
        module, function = CALLS[self.verb]
        return getattr(importlib.import_module(module), function)(config)

    def _sweep_job(self, composed: DictConfig, settings: DictConfig) -> None:
        from vlatrain.config.paths import job_name
        from vlatrain.reporting.sweep import Outcome, announce

        number = int(settings.job.num)
        overrides = [str(text) for text in settings.overrides.task]
        self.folder = Path(str(settings.sweep.dir))
        outcome = Outcome(number, overrides)
        varied = [text for text in overrides if text.lstrip("+").partition("=")[0] in self.swept]
        announce(number, varied)
        start = time.monotonic()
        try:
            result = self._call(composed, job_name(number, varied))
            outcome.folder = getattr(result, "folder", None)
            outcome.metrics = getattr(result, "metrics", None) or {}
        except UserError as error:
            outcome.failure = "; ".join(error.problems)
            report(error)
        except Exception as error:
            outcome.failure = f"{type(error).__name__}: {error}".splitlines()[0]
            self._traceback(error)
        outcome.seconds = time.monotonic() - start
        self.outcomes.append(outcome)

    def finish(self) -> int:
        """Report what came of the jobs; the exit status."""
        if self.folder is not None and os.environ.get("RANK", "0") == "0":
            from vlatrain.reporting.sweep import finish

            finish(self.outcomes, self.folder)
        if any(outcome.failure for outcome in self.outcomes):
            return 1
        if isinstance(self.error, UserError):
            raise self.error
        if self.error is not None:
            self._traceback(self.error)
            return 1
        return 0

    def _traceback(self, error: Exception) -> None:
        text = "".join(traceback.format_exception(error))
        print(text, end="", file=sys.stderr)
        if self.log is not None and self.log.parent.is_dir():
            with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as file:
                file.write(text)
            print(f"the log: {self.log}", file=sys.stderr)


@contextlib.contextmanager
def _argv(words: list[str]) -> Iterator[None]:
    """Let Hydra's decorator read these arguments."""
    before = sys.argv
    sys.argv = [before[0], *words]
    try:
        yield
    finally:
        sys.argv = before
