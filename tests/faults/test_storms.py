"""Storms over whole runs of the command line: many kills, a disk that is full at each write, two processes at once."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import command
from tests.disk import FORK

pytestmark = pytest.mark.slow

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


def finish(process: Any) -> int:
    process.join(120)
    assert not process.is_alive(), "it hangs"
    return process.exitcode


@pytest.mark.parametrize("cache", ["off", "disk"])
def test_twenty_kills_at_random_moments(cache: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "one" / "run", tmp_path / "two" / "run"
    for folder in (whole, killed):
        folder.parent.mkdir()
    began = time.monotonic()
    assert finish(session(whole, f"trainer.cache={cache}")) == 0
    took = time.monotonic() - began
    draw, kills = random.Random(cache), 0
    for _ in range(20):
        process = session(killed, f"trainer.cache={cache}")
        process.join(draw.random() * took)
        process.kill()
        kills += finish(process) == -signal.SIGKILL
    assert kills >= 5, "of a run that has all its steps the rest takes little time"
    assert finish(session(killed, f"trainer.cache={cache}")) == 0
    assert result_of(killed) == result_of(whole)
    assert not list(killed.rglob("*.tmp"))


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


def test_a_disk_that_is_full_at_each_write(tmp_path: Path) -> None:
    whole, full = tmp_path / "one" / "run", tmp_path / "two" / "run"
    for folder in (whole, full):
        folder.parent.mkdir()
    assert finish(session(whole, "trainer.cache=off")) == 0
    number = refused = 0
    while True:
        number += 1
        status = finish(session(full, "trainer.cache=off", before=full_from(number)))
        said = full.with_suffix(".said").read_text()
        assert "Traceback" not in said, said
        if status == 0:
            break
        assert status == 2, said
        assert sum(line.startswith("error") for line in said.splitlines()) == 1, said
        assert "No space left on device" in said
        refused += 1
    assert refused > 10
    assert result_of(full) == result_of(whole)


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command_line = [sys.executable, "-m", "vlatrain", *WORDS, f"run.dir={folder}"]
    environment = {**os.environ, "VLATRAIN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    (refused,) = (text for process, text in zip(both, said, strict=True) if process.returncode == 2)
    assert "is being written by" in refused
    assert "Traceback" not in "".join(said)
    assert (folder / "metrics.json").exists()
