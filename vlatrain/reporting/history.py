"""The course of a training in `metrics.jsonl`."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlatrain.config.files import replace_file

log = logging.getLogger("vlatrain")

FLUSH_EVERY = 1.0  # seconds between flushes of `metrics.jsonl` to the disk


class JsonLines:
    """Records as lines of JSON in a file, flushed to the disk now and then. Continuing a run removes the lines of steps that will
    be done again. What cannot be written stays in memory until it can be.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # what of the step that is gone on from is there already, by its keys
        self.step, self.recorded = 0, list[set[str]]()
        self.waiting: list[str] = []
        self.failed, self.flushed = False, 0.0

    def begin(self, step: int) -> None:
        """Keep what was recorded up to `step`; a line torn by a kill goes too."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        self.step, self.recorded = step, [set(json.loads(line)) for line in kept if _step_of(line) == step]
        try:
            replace_file(self.path, "".join(line + "\n" for line in kept) if step else "")
        except OSError as error:
            self._describe(error)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line, after those that could not be written before; unless it is there: an evaluation that a kill kept from
        being saved is made, and recorded, again."""
        if record["step"] == self.step and set(record) in self.recorded:
            return
        self.waiting.append(json.dumps(record) + "\n")
        self._append(flush=time.monotonic() - self.flushed > FLUSH_EVERY)

    def close(self, status: int = 0) -> None:
        """Write what is left, whatever the run ended with; nothing is open."""
        self._append(flush=True)
        if self.waiting:
            log.warning("%s: the last %d lines could not be written", self.path, len(self.waiting))

    def _append(self, flush: bool) -> None:
        try:
            with self.path.open("ab", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                view = memoryview("".join(self.waiting).encode())
                try:
                    while view:
                        view = view[file.write(view) :]
                    if flush:
                        os.fsync(file.fileno())
                        self.flushed = time.monotonic()
                except OSError:
                    with suppress(OSError):
                        file.truncate(size)  # no half of a line
                    raise
        except OSError as error:
            self._describe(error)
            return
        if self.failed and self.waiting:
            log.info("%s can be written again: nothing of it is missing", self.path)
        self.failed, self.waiting = False, []

    def _describe(self, error: OSError) -> None:
        if not self.failed:
            log.warning("%s cannot be written (%s); its lines wait until it can be", self.path, error.strerror or error)
        self.failed = True


def _step_of(line: str) -> float:
    try:
        step: float = json.loads(line)["step"]
        return step
    except (ValueError, KeyError, TypeError):
        return float("inf")
