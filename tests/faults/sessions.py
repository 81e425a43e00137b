"""Whole runs of the command line, each session of which is a process of its own that has everything imported, and may end in any
way; `scripts/soak.py` uses them, too."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.commands import command
from tests.disk import FORK

WORDS = (
    "task=vqa", "data.train_size=24", "data.eval_size=8", "trainer.max_steps=12", "trainer.batch_size=4", "trainer.accumulate=1",
    "trainer.save_every=2", "trainer.eval_every=5", "trainer.log_every=1", "trainer.threads=1", "adapter.dropout=0.2",
    "adapter.init=normal", "adapter.dim=4", "resume=auto",
)  # fmt: skip


def session(folder: Path, *more: str, before: Callable[[], None] = lambda: None) -> Any:
    """A run, or its continuation, in a process of its own that has everything imported."""

    def child() -> None:
        os.environ["VLATRAIN_CACHE"] = str(folder.parent / "cache")
        said = os.open(folder.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(stream), "w", buffering=1) for stream in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        os._exit(command(*WORDS, *more, f"run.dir={folder}"))

    process = FORK.Process(target=child)
    process.start()
    return process


def result_of(folder: Path) -> tuple[bytes, list[dict], dict, str]:
    """What a run has come to, without its times."""
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = {"samples_per_s", "seconds", "peak_mb", "seconds_left"}
    course = [{key: value for key, value in record.items() if key not in timed} for record in history]
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    return adapter, course, metrics, (folder / "predictions.jsonl").read_text()


def full_from(number: int) -> Callable[[], None]:
    """From the n-th flush on, there is no room for anything."""

    def fill() -> None:
        flush, count = os.fsync, [0]

        def flush_if_there_is_room(descriptor: int) -> None:
            count[0] += 1
            if count[0] >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(descriptor)

        os.fsync = flush_if_there_is_room

    return fill
