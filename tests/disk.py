"""Disks that are full, and processes that are killed while they write."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FORK = multiprocessing.get_context("fork")  # the imports are done, and what is patched stays so


@contextmanager
def room(largest: int) -> Iterator[None]:
    """Files may grow to `largest` bytes: the operating system refuses more, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def killed_while_writing(write: Callable[[], object]) -> None:
    """Call a function in a process of its own, which is killed when it first flushes a file to the disk."""

    def child() -> None:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        write()

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it has not flushed what it wrote"
