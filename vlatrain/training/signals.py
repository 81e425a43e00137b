"""Signals: finish the step, save, say how to continue; outside of the steps, stop at once and say what is kept. No torch here."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

# SIGHUP: the terminal is gone; Windows has none
ENDING = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
AGAIN = 1.0  # seconds within which the same signal comes twice: from the group of processes, and from who started them
SAVING = "Saving after this step; once more to leave now\n"


class Interrupted(Exception):  # noqa: N818, no error
    """The training was stopped by a signal.

    Attributes:
        signum: the signal.
        exit_status: what the process should exit with: 143 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_status = 128 + signum


class Stopped(KeyboardInterrupt):
    """A signal came that ends the process, as Ctrl-C does.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def name_of(signum: int) -> str:
    """What people call a signal."""
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


def signal_of(error: KeyboardInterrupt) -> int:
    """The signal that an interruption came from."""
    return int(getattr(error, "signum", signal.SIGINT))


def named(name: str | None) -> list[signal.Signals]:
    """The signal of a name without SIG, if there is one: USR1."""
    return [signal.Signals[f"SIG{name}"]] if name and hasattr(signal, f"SIG{name}") else []


@contextmanager
def ending(*more: signal.Signals) -> Iterator[None]:
    """While entered, signals that would end the process, and those that are asked for, raise `Stopped` wherever the main thread is.
    What is ignored (nohup) stays so."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum)

    with _handled([*ENDING, *more], stop):
        yield


class Signals:
    """While entered, the first signal is only noted, and answered by a line; a second one raises `Stopped` at once.

    Attributes:
        received: the signal, 0 while there was none.

    Args:
        more: signals that are taken like SIGTERM.
    """

    def __init__(self, more: Sequence[signal.Signals] = ()) -> None:
        self.received, self.at = 0, 0.0
        self._numbers, self._entered = [signal.SIGINT, *ENDING, *more], ExitStack()

    def __enter__(self) -> Signals:
        self._entered.enter_context(_handled(self._numbers, self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            if signum == signal.SIGINT or time.monotonic() - self.at > AGAIN:
                raise Stopped(signum)
            return
        self.received, self.at = signum, time.monotonic()
        if os.environ.get("RANK", "0") == "0":
            # past all buffers, in the midst of whose writing this may have come; and where nobody is looking, not at all
            with suppress(OSError, ValueError, AttributeError):
                os.write(sys.stderr.fileno(), SAVING.encode())


@contextmanager
def _handled(numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """While entered, a handler for signals that are not ignored. Python sets handlers in the main thread alone."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)
