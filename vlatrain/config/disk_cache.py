"""Folders that runs keep for others in `kept_folder()`, by kind: each is named by a hash of all that it depends on, and is there as
a whole or not at all. A folder that processes have mapped may be removed: they go on. No torch here."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vlatrain.config.files import PARTIAL, flush, kept_folder

LOCK = ".lock"  # ends the name of a file by which processes wait for each other
LEFT = 86_400  # seconds after which what is half written was left by a process that was killed


def place_of(kind: str) -> Path:
    """Where folders of a kind are."""
    return kept_folder() / kind


def folders(kind: str) -> list[Path]:
    """The folders of a kind, the last used first; what is half written is not among them."""
    with suppress(OSError):
        found = [path for path in place_of(kind).iterdir() if path.is_dir() and path.suffix != PARTIAL]
        return sorted(found, key=lambda path: -_last_used(path))
    return []


def leftovers(kind: str) -> list[Path]:
    """Folders of a kind that a process was writing when it was killed, or still is."""
    with suppress(OSError):
        return [path for path in place_of(kind).iterdir() if path.is_dir() and path.suffix == PARTIAL]
    return []


def put(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder: `write(temporary folder)`, flushed and renamed. What was there before goes; of several processes that write
    the same, the first one's stays.

    Raises:
        OSError: it cannot be written. What `write` raises is raised; nothing is left of it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", suffix=PARTIAL, dir=folder.parent))
    try:
        write(partial)
        for path in (*partial.iterdir(), partial):
            flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():  # else another process has just been first
                raise
        flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for left in folder.parent.glob(f"*{PARTIAL}"):
        if time.time() - _last_used(left) > LEFT:
            shutil.rmtree(left, ignore_errors=True)


def use(folder: Path) -> None:
    """Let a folder's date say that it was used now."""
    with suppress(OSError):
        os.utime(folder)


def remove(folder: Path) -> int:
    """Remove a folder; bytes that were freed."""
    size = bytes_of(folder)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.with_suffix(LOCK).unlink(missing_ok=True)
        folder.parent.rmdir()  # if it is empty
    return size


def bytes_of(folder: Path) -> int:
    """Bytes of what is in a folder, and of what is yet to be filled in."""
    with suppress(OSError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


def _last_used(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
