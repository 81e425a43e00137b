"""States in memory that the processes of a machine share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from vlatrain.training.prefix_cache.store import Disk

log = logging.getLogger("vlatrain")


class Shared(Disk):
    """States in memory that the processes of a machine share: shards in files without a name.

    Such a file (Linux's memfd) is there as long as a process has it open or mapped, so nothing is left whatever is killed; and it
    needs no room in `/dev/shm`, of which containers have 64 MB. The others find it among this process's open files, take it in, and
    then it is closed.
    """

    possible = hasattr(os, "memfd_create")

    def __init__(self) -> None:
        super().__init__(Path(f"/proc/{os.getpid()}/fd"), "", {})
        self.name = "the memory that processes share"
        self.files: list[Any] = []

    def refresh(self) -> None:
        """Nothing to do: other processes' shards are taken in when all are there."""

    def _turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def take_in(self, paths: Iterable[Path]) -> None:
        """Know the shards of other processes."""
        for path in paths:
            if path not in self.open and (fault := self._take_in(path)):
                log.warning("Cache: %s %s", path, fault)

    def close(self) -> None:
        """Close this process's own shards, when all have taken them in; they stay mapped."""
        for file in self.files:
            file.close()
        self.files, self.own = [], []

    def _write(self, data: bytes) -> Path:
        file = open(os.memfd_create("vlatrain"), "wb", buffering=0)  # noqa: SIM115, closed when all have it
        self.files.append(file)
        view = memoryview(data)
        while view:  # Linux writes at most 2 GB at once
            view = view[file.write(view) :]
        return self.folder / str(file.fileno())

    def withdraw(self) -> None:
        """Forget all states."""
        self.close()
        self.places, self.waiting, self.open = {}, {}, {}

    @property
    def bytes(self) -> int:
        """Bytes of all states, of all processes."""
        return sum(shard.get_tensor(key).nbytes for shard in self.open.values() for key in shard.keys())  # noqa: SIM118
