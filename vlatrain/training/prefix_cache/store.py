"""Where kept states lie: in memory (of one process, or shared by those of a machine), or on disk in shards that several runs share.

A folder of the disk store belongs to one prefix, whose content its name is the hash of, and holds shards and nothing else. A shard
is a safetensors file, written whole or not at all, read by memory mapping, never changed. Its header says all there is to know of
it: the prefix, what that is of, whether the layers return tuples, and the checksum of each state. So whatever was killed while it
filled a folder, what is there is sound. At the start only headers are read: a shard that is cut off, cannot be read, or is of
another prefix is named and removed, and what it held is made anew. A state is compared with its checksum when a process first reads
it. If it is damaged, its shard is named and removed, this run computes the state whenever it needs it, and the next run keeps it
anew. A folder that cannot be written can still be read, and what a run has opened stays even if it is removed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vlatrain.config import UserError
from vlatrain.config.files import PARTIAL, kept_folder, replace_file

log = logging.getLogger("vlatrain")

SHARD = ".safetensors"
SHARD_BYTES = 64_000_000
PATIENCE = 10.0  # seconds that a process waits for its turn to write
LEFT = 3600  # seconds after which what is half written was left by a kill
EARLIER = "prefix.json"  # what earlier versions wrote beside the shards


class Unwritable(Exception):  # noqa: N818, what it says
    """A shard cannot be written, and why."""


def unwritable() -> str:
    """Why nothing can be written to `kept_folder()`, which is made if it is missing; empty: it can be."""
    if str(kept_folder()).startswith("~"):
        return "there is no home folder"
    try:
        kept_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=kept_folder()):
            return ""
    except OSError as error:
        return f"{kept_folder()} cannot be written ({error.strerror})"


def folders() -> list[Path]:
    """The folders of prefixes in `kept_folder()`, whatever is in them."""
    try:
        paths = sorted(kept_folder().iterdir())
    except OSError:
        return []
    return [path for path in paths if re.fullmatch("[0-9a-f]{32}", path.name) and path.is_dir()]


class Store(Protocol):
    """States by key.

    Attributes:
        in_tuple: whether the layers that they left return tuples; known as soon as there is a state.
    """

    in_tuple: bool

    def __contains__(self, key: str) -> bool: ...

    def get(self, key: str) -> Tensor | None:
        """The state of a key, on the CPU; None: it is not there, or it is damaged, which is logged once a shard."""
        ...

    def add(self, states: Mapping[str, Tensor], in_tuple: bool) -> None:
        """Keep states, on the CPU. Raises `Unwritable`: they are there for this process alone."""
        ...

    def flush(self) -> None:
        """Write what has been added. Raises `Unwritable`, as `add`."""
        ...

    def refresh(self) -> None:
        """Know what other processes have kept meanwhile."""
        ...

    def withdraw(self) -> None:
        """Remove what has been added."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of all that is kept."""
        ...


class Memory:
    """States in memory: as long as the run."""

    def __init__(self) -> None:
        self.states: dict[str, Tensor] = {}
        self.in_tuple = False

    def __contains__(self, key: str) -> bool:
        return key in self.states

    def get(self, key: str) -> Tensor | None:
        """The state of a key."""
        return self.states.get(key)

    def add(self, states: Mapping[str, Tensor], in_tuple: bool) -> None:
        """Keep states."""
        self.states.update({key: state.clone() for key, state in states.items()})
        self.in_tuple = in_tuple

    def flush(self) -> None:
        """Nothing to do."""

    def refresh(self) -> None:
        """Nothing to do."""

    def withdraw(self) -> None:
        """Forget all states."""
        self.states = {}

    @property
    def bytes(self) -> int:
        """Bytes of all states."""
        return sum(state.nbytes for state in self.states.values())


class Disk:
    """States in the shards of a folder.

    Args:
        folder: the folder; made with the first shard.
        prefix: hash of the prefix, in every shard.
        note: what the folder is for, as `vlatrain cache` lists it.
        limit: bytes that all folders together may take.
    """

    def __init__(self, folder: Path, prefix: str, note: Mapping[str, Any], limit: float = math.inf) -> None:
        self.folder, self.prefix, self.note, self.name = folder, prefix, dict(note), str(folder)
        self.limit = limit
        self.in_tuple = False
        self.places: dict[str, Path] = {}
        self.unchecked: dict[str, int] = {}  # checksums of the states that this process has not read yet
        self.open: dict[Path, Any] = {}  # in a worker process too, which a fork has given them
        self.waiting: dict[str, Tensor] = {}
        self.own: list[Path] = []
        for path in _files(folder):
            if path.suffix != SHARD and _age(path) > LEFT:
                _remove(path)
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that are there, those of other processes too; remove bad ones."""
        known = set(self.places.values())
        for path in _files(self.folder, SHARD):
            if path not in known and (fault := self._take_in(path)):
                log.warning("Cache: %s %s; what it held is made anew", path, fault)
                _remove(path)

    def touch(self) -> None:
        """Let the folder's date say that it was used now."""
        with suppress(OSError):
            os.utime(self.folder)

    def _take_in(self, path: Path) -> str:
        """Know a shard's states; what is wrong with it, if anything."""
        try:
            shard = safe_open(path, "pt")
            about = json.loads((shard.metadata() or {})["vlatrain"])
            if about["prefix"] != self.prefix:
                return "belongs to another prefix"
            sums = about["sums"]
            if sums.keys() != set(shard.keys()):
                return "is damaged: its header names other states than its index"
            self.in_tuple = about["in_tuple"]
        except OSError:  # another process has just removed it, or it is not for us to read
            return ""
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"cannot be read ({str(error).splitlines()[0]})"
        self.places.update(dict.fromkeys(sums, path))
        self.unchecked.update(sums)
        self.open[path] = shard
        return ""

    def __contains__(self, key: str) -> bool:
        return key in self.places or key in self.waiting

    def get(self, key: str) -> Tensor | None:
        """The state of a key; None: it is not there, or it is damaged. Its bytes, type and shape are checked the first time."""
        if key in self.waiting:
            return self.waiting[key]
        path = self.places.get(key)
        if path is None:
            return None
        state: Tensor = self.open[path].get_tensor(key)
        expected = self.unchecked.pop(key, None)
        if expected is None or _sum(state) == expected:
            return state
        del self.places[key]
        self._refuse(path)
        return None

    def _refuse(self, path: Path) -> None:
        """Name a shard with a damaged state, and remove it; of several processes that meet it, the one that removes it names it."""
        what = "is damaged: a state differs from its checksum; it is computed whenever it is needed"
        try:
            path.unlink()
            log.warning("Cache: %s %s, and kept anew by the next run", path, what)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("Cache: %s %s. It cannot be removed (%s): remove it", path, what, error.strerror)

    def add(self, states: Mapping[str, Tensor], in_tuple: bool) -> None:
        """Keep states; a shard is written when there is enough for one."""
        self.waiting.update({key: state.contiguous().clone() for key, state in states.items()})
        self.in_tuple = in_tuple
        if sum(state.nbytes for state in self.waiting.values()) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has been added as a shard, but for what another run has kept meanwhile: one process after the other, so that
        each state is kept once, and no more than may be."""
        if not self.waiting:
            return
        with self._turn():
            self.refresh()
            self.waiting = {key: state for key, state in self.waiting.items() if key not in self.places}
            if self.waiting:
                self._write_waiting()

    def _turn(self) -> AbstractContextManager[None]:
        return _one_at_a_time(self.folder.parent)

    def _full(self, size: int) -> str:
        """Why there is no room for so many bytes; empty: there is."""
        if self.limit == math.inf or sum(sizes(folder) for folder in folders()) + size <= self.limit:
            return ""
        return f"trainer.cache_gb={self.limit / 1e9:g} is reached, with what other runs keep"

    def _write_waiting(self) -> None:
        sums = {key: _sum(state) for key, state in self.waiting.items()}
        about = {"prefix": self.prefix, "note": self.note, "in_tuple": self.in_tuple, "sums": sums}
        data = save(dict(self.waiting), {"vlatrain": json.dumps(about)})
        if fault := self._full(len(data)):
            raise Unwritable(fault)
        try:
            path = self._write(data)
            self.open[path] = safe_open(path, "pt")
        except OSError as error:
            with suppress(OSError):
                self.folder.rmdir()  # if it is empty
            raise Unwritable(f"{self.name} cannot be written ({error.strerror or error})") from error
        self.places.update(dict.fromkeys(self.waiting, path))
        self.unchecked.update(sums)
        self.own.append(path)
        self.waiting = {}

    def _write(self, data: bytes) -> Path:
        path = self.folder / f"{uuid.uuid4().hex}{SHARD}"
        replace_file(path, data)
        return path

    def withdraw(self) -> None:
        """Remove the shards that this object has written, and the folder if nothing else is in it."""
        self.places = {key: path for key, path in self.places.items() if path not in self.own}
        self.waiting = {}
        for path in self.own:
            del self.open[path]
            _remove(path)
        self.own = []
        with suppress(OSError):
            self.folder.rmdir()

    @property
    def bytes(self) -> int:
        """Bytes of the folder's shards."""
        return sizes(self.folder)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Be the only process that writes into the folders in a folder. Whatever keeps it from that for long (a process that is
    stopped, a file system without locks), it goes on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield  # writing says it
        return
    try:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def _sum(state: Tensor) -> int:
    """The checksum of a state's type, shape and bytes."""
    about = zlib.crc32(f"{state.dtype} {tuple(state.shape)}".encode())
    return zlib.crc32(state.contiguous().reshape(-1).view(torch.uint8).numpy().data, about)


def note_of(folder: Path) -> dict[str, Any]:
    """What a folder is of, as its shards say; empty if none does."""
    for path in _files(folder, SHARD):
        with suppress(OSError, SafetensorError, ValueError, KeyError):
            note: dict[str, Any] = json.loads((safe_open(path, "pt").metadata() or {})["vlatrain"])["note"]
            return note
    return {}


def leftovers() -> list[Path]:
    """Files in the folders of prefixes that a process was writing when it was killed, or still is."""
    return [path for folder in folders() for path in _files(folder, PARTIAL)]


def sizes(folder: Path) -> int:
    """Bytes of what is in a folder."""
    return sum(_size(path) for path in _files(folder))


def clear(folders: Iterable[Path]) -> int:
    """Remove folders, with what was left in them by runs that were killed.

    Returns:
        bytes that were freed.

    Raises:
        UserError: folders that cannot be removed; the others are.
    """
    freed, problems = 0, []
    for folder in folders:
        before = sizes(folder)
        faults = [fault for path in _files(folder) if (fault := _remove(path))]
        freed += before - sizes(folder)
        with suppress(OSError):
            folder.rmdir()
        if faults:
            problems.append(f"{folder} cannot be removed ({faults[0]})")
    if problems:
        raise UserError(problems)
    return freed


def _files(folder: Path, ending: str = "") -> list[Path]:
    """What is ours in a folder, or of that only what ends so: shards, what was half written, and what earlier versions wrote."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:  # there is none, or another process has just removed it
        return []
    own = [p for p in paths if p.suffix in (SHARD, PARTIAL) or p.name.startswith(PARTIAL) or p.name == EARLIER]
    return [path for path in own if path.name.endswith(ending)]


def _remove(path: Path) -> str:
    """Remove a file; why that cannot be, if so."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _age(path: Path) -> float:
    """Seconds since a file was written last."""
    with suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0
