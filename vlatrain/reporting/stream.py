"""A stream that nobody has to look at. Imports nothing of weight: it stands before everything else."""

from __future__ import annotations

from contextlib import suppress
from typing import IO, Any


class Forgiving:
    """A text stream that goes on when whoever reads it does not: what cannot be written is left out.

    A pipe to `head` that has closed, a terminal that is gone, a full disk behind a file: none of them is what a training should end
    by. Its log has what was said.

    Args:
        stream: the stream.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, if that can be done; as many characters as were given."""
        try:
            return self.stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush, if that can be done."""
        with suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
