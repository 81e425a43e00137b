"""Progress and messages: bars on a terminal, now and then a plain line elsewhere, everything in the run's log file."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console as Plain
from rich.console import ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from vlatrain.config.errors import UserError
from vlatrain.config.printable import printable

BRIEF: ContextVar[str] = ContextVar("BRIEF", default="")
"""Of a sweep's job, what it is called. It shows bars (where there is no terminal a line a minute) and warnings, no more: a line
tells of it when it ends. Its log has everything."""
ROOT = "vlatrain"  # the logger that all of ours pass their messages to


class RichConsole(Plain):
    """rich's console, which sends a terminal no control character but its own."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as it is shown, before its width is asked for."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """What is to be written, piece by piece."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class Track(Protocol):
    """One piece of work in progress; the same as the training's own."""

    def advance(self, amount: int = 1, **facts: str) -> None:
        """So much more is done; facts to show beside it."""
        ...


class Console:
    """Where a person looks. Shows progress, and the messages of the `vlatrain` logger.

    Args:
        stream: where to; None: standard error, so that results on standard output can be piped.
        quiet: show nothing (processes other than the first).
        interval: seconds between plain lines of progress, where it is no terminal.
        live: bars instead of lines; None: if the stream is a terminal.
    """

    def __init__(
        self, stream: IO[str] | None = None, quiet: bool = False, interval: float = 5.0, live: bool | None = None
    ) -> None:
        self.stream = stream or sys.stderr
        self.job = BRIEF.get()
        self.quiet, self.interval = quiet, 60.0 if self.job else interval
        self.live = self.stream.isatty() if live is None else live
        self._rich = RichConsole(file=self.stream, force_terminal=True) if self.live else None
        self._bars: Progress | None = None
        self._others: list[tuple[logging.StreamHandler[Any], Any]] = []  # of libraries, with the stream that they had
        self._open = 0
        self._process = os.getpid()

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[Track]:
        """Show a piece of work of `total` units, of which `done` were done before. May be nested."""
        label = f"{self.job} {label}".lstrip()
        if self.quiet:
            yield _Quiet()
        elif self.live:
            bars = self._begin()
            task = bars.add_task(label, total=total, completed=done, facts="")
            try:
                yield _Bar(bars, task)
            finally:
                bars.remove_task(task)
                self._end()
        else:
            yield _Lines(self, label, total, done)

    def message(self, text: str) -> None:
        """Show a line, above the bars if there are any."""
        if self.quiet:
            return
        # in a data-loading worker, whatever held rich's lock when it was forked holds it for ever
        text = printable(text)
        if self._rich is not None and os.getpid() == self._process:
            self._rich.print(wrapped(text, self._rich.width), markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def _begin(self) -> Progress:
        if self._bars is None:
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
            self._bars = Progress(*columns, TextColumn("{task.fields[facts]}"), console=self._rich, transient=True)
            self._bars.start()
            self._others = [(handler, handler.setStream(sys.stderr)) for handler in _handlers_of(self.stream)]
        self._open += 1
        return self._bars

    def _end(self) -> None:
        self._open -= 1
        if not self._open and self._bars is not None:
            for handler, stream in self._others:
                handler.setStream(stream)
            self._bars.stop()
            self._bars = None


def _handlers_of(stream: IO[str]) -> list[logging.StreamHandler[Any]]:
    """What libraries' loggers write to a stream by: past rich, which stands in for standard error while bars are shown, it would
    damage them."""
    loggers = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    handlers = [handler for one in (logging.root, *loggers) for handler in one.handlers]
    return [one for one in handlers if isinstance(one, logging.StreamHandler) and one.stream is stream]


def wrapped(text: str, width: int) -> str:
    """A text whose lines end between words; a path that is longer than a line stays whole."""
    lines = (textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in text.splitlines())
    return "\n".join("\n".join(line) for line in lines)


def print_sentence(text: str, console: Plain, style: str = "", marked: Mapping[str, str] | None = None) -> None:
    """Print a sentence: on a terminal its lines end between words, and a path is whole; elsewhere it is one line.

    Args:
        text: the sentence.
        console: where to.
        style: of all of it.
        marked: by word the style of that.
    """
    shown = Text(wrapped(printable(text), console.width) if console.is_terminal else printable(text), style)
    for word, own in (marked or {}).items():
        shown.highlight_words([word], own)
    console.print(shown, highlight=False, soft_wrap=True)


class _Quiet:
    def advance(self, amount: int = 1, **facts: str) -> None:
        pass


class _Bar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self.bars, self.task = bars, task

    def advance(self, amount: int = 1, **facts: str) -> None:
        self.bars.update(self.task, advance=amount, facts=joined(facts))


class _Lines:
    def __init__(self, console: Console, label: str, total: int, done: int) -> None:
        self.console, self.label, self.total, self.done, self.before = console, label, total, done, done
        self.began = self.shown = time.monotonic()

    def advance(self, amount: int = 1, **facts: str) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.shown < self.console.interval:
            return
        self.shown = now
        left = (self.total - self.done) * (now - self.began) / max(1, self.done - self.before)
        parts = [f"{self.label} {self.done}/{self.total}", joined(facts), f"{duration(left)} left"]
        self.console.message("  ".join(part for part in parts if part))


def joined(facts: dict[str, str]) -> str:
    """Facts as shown in a line: the loss by name; the others' units tell what they are."""
    return "  ".join(f"{name} {value}" if name in ("loss", "peak") else value for name, value in facts.items())


def duration(seconds: float) -> str:
    """Seconds as people read them: `7 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def report(error: UserError) -> None:
    """Print a user's error to standard error, a line a problem."""
    console = RichConsole(stderr=True, soft_wrap=True)
    for problem in error.problems:
        console.print(Text("error ", style="bold red") + Text(printable(problem), style="default"))


class _ToConsole(logging.Handler):
    def __init__(self, console: Console, warnings: bool, level: int) -> None:
        super().__init__(level)
        self.console, self.warnings = console, warnings

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and not self.warnings:
            return
        if self.console.job and record.levelno < logging.WARNING:
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.console.message(prefix + record.getMessage())


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _ToFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, logging's name
        pass  # a full disk is told of when a checkpoint is written; the log is not what a training should fail by


@contextmanager
def logged(
    console: Console, file: Path | None = None, warnings: bool = True, level: int = logging.INFO
) -> Iterator[None]:
    """While inside, messages of the `vlatrain` logger go to the console and, with time and level, to the end of the
    file.

    Args:
        console: shows what is of `level` and above.
        file: `run.log`; gets debug messages and tracebacks too. None: no file (processes other than the first).
        warnings: whether the console shows warnings; not where they are `collected` and shown otherwise.
        level: information, or warnings alone.
    """
    logger = logging.getLogger(ROOT)
    handlers: list[logging.Handler] = [_ToConsole(console, warnings, level)]
    fault = ""
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(_ToFile(file, encoding="utf-8"))
            handlers[-1].setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
        except OSError as error:  # a run that is only to be read
            fault = f"{file} cannot be written ({error.strerror}): what is said is kept nowhere"
    before = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    if fault:
        logger.warning(fault)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _ToList(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append((record.levelno, record.getMessage()))


@contextmanager
def collected(level: int = logging.WARNING) -> Iterator[list[tuple[int, str]]]:
    """A list of what the `vlatrain` logger says while inside, level and message, from some level on. Whoever collects it shows it:
    a handler that a library has put on the root logger, as TensorBoard's may, does not say it, too."""
    logger, handler = logging.getLogger(ROOT), _ToList(level)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
