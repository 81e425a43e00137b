"""Where kept states lie: in memory, or on disk in shards that several runs and processes share.

A folder of the disk store belongs to one prefix, whose content its name is the hash of. A shard is a safetensors file, written
under another name and renamed when it is whole, read by memory mapping, never changed. Each state has its checksum in the
shard's header; a shard that is cut off, damaged, or of another prefix is told by name and removed, and what it held is made
anew.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger("vlatrain")

NOTE = "prefix.json"
SHARD_BYTES = 64_000_000


def root() -> Path:
    """The folder of all that is kept on disk: `VLATRAIN_CACHE`, or one in the user's own folder for such things."""
    return Path(os.environ.get("VLATRAIN_CACHE") or Path.home() / ".cache" / "vlatrain" / "prefixes")


class Store(Protocol):
    """States by key."""

    def __contains__(self, key: str) -> bool: ...

    def get(self, key: str) -> Tensor:
        """The state of a key, on the CPU."""
        ...

    def add(self, states: Mapping[str, Tensor]) -> None:
        """Keep states, on the CPU."""
        ...

    def flush(self) -> None:
        """Write what has been added."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of all that is kept."""
        ...


class Memory:
    """States in memory: as long as the run."""

    def __init__(self) -> None:
        self.states: dict[str, Tensor] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.states

    def get(self, key: str) -> Tensor:
        """The state of a key."""
        return self.states[key]

    def add(self, states: Mapping[str, Tensor]) -> None:
        """Keep states."""
        self.states.update({key: state.clone() for key, state in states.items()})

    def flush(self) -> None:
        """Nothing to do."""

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
    """

    def __init__(self, folder: Path, prefix: str, note: Mapping[str, Any]) -> None:
        self.folder, self.prefix = folder, prefix
        self.places: dict[str, Path] = {}
        self.open: dict[tuple[int, Path], Any] = {}
        self.waiting: dict[str, Tensor] = {}
        self.note = dict(note)
        with suppress(OSError, ValueError):  # what others have told stays
            self.note = {**json.loads((folder / NOTE).read_text(encoding="utf-8")), **note}
        self.refresh()

    def tell(self, **facts: Any) -> None:
        """Write the folder's note, with more facts; that it was used now can be told from its date."""
        self.note |= facts
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_whole(self.folder / NOTE, json.dumps(self.note, indent=2).encode())

    def refresh(self) -> None:
        """Take in the shards that are there, those of other processes too; remove bad ones."""
        known = set(self.places.values())
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in known and (fault := self._take_in(path)):
                log.warning("Cache: %s %s; it is removed, and what it held is made anew", path, fault)
                path.unlink(missing_ok=True)

    def _take_in(self, path: Path) -> str:
        """Know a shard's states; what is wrong with it, if anything."""
        try:
            with safe_open(path, "pt") as shard:
                about = json.loads((shard.metadata() or {}).get("vlatrain", "{}"))
                if about.get("prefix") != self.prefix:
                    return "belongs to another prefix"
                if set(about["sums"]) != set(shard.keys()):
                    return "is damaged"
                for key, checksum in about["sums"].items():
                    if _sum(shard.get_tensor(key)) != checksum:
                        return "is damaged"
                self.places.update(dict.fromkeys(about["sums"], path))
        except FileNotFoundError:  # another process has just removed it
            return ""
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            return f"cannot be read ({str(error).splitlines()[0]})"
        return ""

    def __contains__(self, key: str) -> bool:
        return key in self.places or key in self.waiting

    def get(self, key: str) -> Tensor:
        """The state of a key."""
        if key in self.waiting:
            return self.waiting[key]
        at = (os.getpid(), self.places[key])  # a worker process opens its own
        if at not in self.open:
            self.open[at] = safe_open(at[1], "pt")
        return self.open[at].get_tensor(key)

    def add(self, states: Mapping[str, Tensor]) -> None:
        """Keep states; a shard is written when there is enough for one."""
        self.waiting.update({key: state.contiguous().clone() for key, state in states.items()})
        if sum(state.nbytes for state in self.waiting.values()) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has been added as a shard."""
        if not self.waiting:
            return
        self.tell()
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        about = {"prefix": self.prefix, "sums": {key: _sum(state) for key, state in self.waiting.items()}}
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            save_file(dict(self.waiting), partial, metadata={"vlatrain": json.dumps(about)})
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self.places.update(dict.fromkeys(self.waiting, path))
        self.waiting = {}

    @property
    def bytes(self) -> int:
        """Bytes of the folder's shards."""
        return sizes(self.folder)


def _sum(state: Tensor) -> int:
    return zlib.crc32(state.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_bytes(data)
    partial.replace(path)


def sizes(folder: Path) -> int:
    """Bytes of the shards in a folder."""
    return sum(_size(path) for path in folder.glob("*.safetensors"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def clear(folders: Iterable[Path]) -> int:
    """Remove the shards and notes of folders.

    Returns:
        bytes that were freed.
    """
    freed = 0
    for folder in folders:
        for path in [*folder.glob("*.safetensors"), *folder.glob("*.tmp"), folder / NOTE]:
            freed += _size(path)
            path.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return freed
