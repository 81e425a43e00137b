"""SIGTERM and Ctrl-C: finish the step, save, say how to continue."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(Exception):  # noqa: N818, no error
    """The training was stopped by a signal, after saving.

    Attributes:
        signum: the signal.
        exit_status: what the process should exit with: 143 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_status = 128 + signum


class Signals:
    """While entered, the first SIGTERM or SIGINT is only noted; a second Ctrl-C raises KeyboardInterrupt at once.

    Attributes:
        received: the signal, 0 while there was none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in no other
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signum
