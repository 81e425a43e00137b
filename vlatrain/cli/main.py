"""The command line: verb -> Hydra -> typed configuration -> one call.

Hydra keeps its own arguments; ours are the verb in front, `run=FOLDER`, the help, and that everything wrong is said at
once before torch is imported. What fails later: a `UserError` is printed a line a problem, with status 2; an exception
with an `exit_status` is a training that a signal ended after saving, and gives its message and that status; anything
else is a bug or the machine's doing, keeps its traceback (in the run's log too) and gives status 1.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vlatrain import __version__
from vlatrain.cli import help as texts
from vlatrain.config.errors import UserError
from vlatrain.reporting.stream import Forgiving
from vlatrain.training.signals import ending, name_of, signal_of
from vlatrain.verbs import VERBS, announce_loading

if TYPE_CHECKING:
    import argparse

    from vlatrain.cli.jobs import Jobs
    from vlatrain.cli.overrides import Request
    from vlatrain.config import TrainConfig

GROUP_ORDER = ("task", "model", "adapter", "data", "optim", "trainer", "logger", "experiment")

ANSWERED = ("-h", "--help", "--version", "-c", "--cfg", "-i", "--info", "--hydra-help", "-sc", "--shell-completion")
"""Flags that are answered without PyTorch."""
PATIENCE = 1.0  # seconds until the first word


def entry() -> None:
    """The console script."""
    # OpenMP threads that spin while they wait cost a shared machine many times what they save; read when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # PEFT imports it where it is installed; on a CPU it tells of the kernels that it goes without, and of casts
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    sys.stderr = Forgiving(sys.stderr)
    if not any(word.startswith(ANSWERED) for word in sys.argv[1:]):
        waiting = threading.Timer(
            PATIENCE, announce_loading
        )  # a busy machine takes longer than that for the configuration
        waiting.daemon = True
        waiting.start()
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
        Exit status: 0, 1 (a bug, or a failed run of a sweep), 2 (the user's to mend), or 128 plus the number of a signal.
    """
    try:
        verb, rest = split_verb(argv)
        if "--help" in rest or "-h" in rest:
            print(_help(argv, verb), end="")
            return 0
        if "--version" in rest:
            print(f"vlatrain {__version__}")
            return 0
        if VERBS[verb].plain:
            VERBS[verb].call(rest)
            return 0
        with ending():
            jobs = run_jobs(verb, rest, ["vlatrain", *argv])
            return jobs.finish() if jobs else 0
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        from vlatrain.reporting.console import report

        report(error)
        return 2
    except KeyboardInterrupt as error:
        number = signal_of(error)
        print(f"Stopped by {name_of(number)}", file=sys.stderr)
        return 128 + number


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


def _help(argv: Sequence[str], verb: str) -> str:
    from vlatrain.config.folder import conf_dir, options_of

    options = options_of(conf_dir(), GROUP_ORDER)
    return texts.of_verb(verb, options) if argv and argv[0] == verb else texts.overview(options)


def run_jobs(verb: str, rest: Sequence[str], words: Sequence[str]) -> Jobs | None:
    """Run the job of a command, or all jobs of a sweep.

    Args:
        verb: the word in front.
        rest: the other arguments.
        words: the command line as typed.

    Returns:
        The jobs that have ended, whatever came of them; None where a shell asked for a completion.

    Raises:
        UserError: nothing could be begun.
        KeyboardInterrupt: Ctrl-C, outside of what saves before it ends.
    """
    from hydra import main as hydra_main
    from hydra.errors import HydraException

    from vlatrain.cli.compose import Prepared, explained, prepare, with_files
    from vlatrain.cli.compose import run as run_alone
    from vlatrain.cli.jobs import Jobs
    from vlatrain.cli.overrides import Request, literal
    from vlatrain.cli.registry import register
    from vlatrain.config.folder import conf_dir

    arguments, flags = _parsed(list(rest))
    request = Request(verb, list(arguments.overrides), arguments.multirun, arguments.config_dir, arguments.config_name)
    tells = arguments.cfg or arguments.info or arguments.hydra_help
    if tells and request.multirun:
        raise UserError(
            "-m and --cfg, --info or --hydra-help: a sweep has a configuration a job; leave -m out to see that of one"
        )
    if arguments.shell_completion or arguments.hydra_help or arguments.config_path:
        register()
        _place_verb(request)
        prepared = Prepared(request.overrides)
    else:
        request = request if tells else with_files(request)
        prepared = prepare(request, _check_compatibility, whole=request.sweeps or bool(tells))
    overrides = prepared.overrides
    jobs = Jobs(request, words, _check_compatibility, prepared)
    decorated = hydra_main(version_base="1.3", config_path=str(conf_dir()), config_name=request.verb)(jobs.run)
    if arguments.shell_completion:
        _complete(decorated, [*flags, *overrides])
        return None
    if request.sweeps and not tells:
        jobs.begin(Path(prepared.folder or f"outputs/sweeps/{jobs.stamp}"), prepared.notes)
        overrides.append(f"hydra.sweep.dir={literal(str(jobs.folder))}")
    with _argv([*flags, *overrides]), _raising(), ending():
        try:
            if request.sweeps or tells or arguments.config_path or arguments.experimental_rerun:
                decorated()
            else:
                run_alone(request, overrides, jobs.run)
            jobs.ended = True
        except KeyboardInterrupt:
            if jobs.stopped is None:
                jobs.outcomes()  # the table of what there is, and what was not run
                raise
        except HydraException as error:
            jobs.error = UserError(explained(error, request.schema))
        except Exception as error:  # of a sweeper or a launcher; jobs keep theirs
            jobs.error = error
    return jobs


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
