"""What the loop tells the outside: progress, and records of metrics. `vlatrain.reporting` implements both."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Track(Protocol):
    """One piece of work in progress."""

    def advance(self, amount: int = 1, **facts: str) -> None:
        """So much more is done; facts to show beside it, as loss and rate."""
        ...


class Display(Protocol):
    """Shows progress."""

    def track(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Track]:
        """A piece of work of `total` units, of which `done` were done before."""
        ...


class Sink(Protocol):
    """Takes records of metrics. It must not raise: a logger is never a reason for a training to fail."""

    def begin(self, step: int) -> None:
        """A run starts, or continues after `step`: what was recorded of later steps is void."""
        ...

    def write(self, record: Mapping[str, Any]) -> None:
        """One record, with its `step`."""
        ...


class _Silent:
    def track(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Track]:
        return nullcontext(self)

    def advance(self, amount: int = 1, **facts: str) -> None:
        pass


SILENT: Display = _Silent()
