"""Reading what wandb writes offline: records in blocks of 32 KiB, as in a log of LevelDB."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 32768  # bytes: of the file and of a record (checksum, length, kind), of a block
WHOLE, LAST = 1, 4  # kinds of a record that end a message


@dataclass
class Session:
    """What one process has told of a run.

    Attributes:
        records: all of it, in order.
    """

    records: list[Any] = field(default_factory=list)

    def of(self, kind: str) -> list[Any]:
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def run(self) -> Any:
        return self.of("run")[-1]

    @property
    def config(self) -> dict[str, Any]:
        return _values(update for record in self.of("config") for update in record.update)

    @property
    def summary(self) -> dict[str, Any]:
        return _values(update for record in self.of("summary") for update in record.update)

    @property
    def exit_code(self) -> int:
        return int(self.of("exit")[-1].exit_code)

    @property
    def preempting(self) -> bool:
        return bool(
            self.of("preempting") or [r for r in self.of("request") if r.WhichOneof("request_type") == "preempting"]
        )

    def artifacts(self, kind: str) -> list[Any]:
        return [artifact for artifact in self.of("artifact") if artifact.type == kind]

    def table(self, name: str) -> dict[str, Any]:
        """A table with all of its cells, as it is sent."""
        for artifact in self.artifacts("run_table"):
            for entry in artifact.manifest.contents:
                if entry.path == f"{name}.table.json":
                    return dict(json.loads(Path(entry.local_path).read_text(encoding="utf-8")))
        raise KeyError(name)


def sessions(run: Path) -> list[Session]:
    """The sessions of a run folder, in the order of their beginning."""
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_ctime_ns)
    return [Session(list(_records(file.read_bytes()))) for file in files]


def _records(data: bytes) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    assert data.startswith(b":W&B")
    at, message = HEADER, b""
    while at + HEADER <= len(data):
        if (left := BLOCK - at % BLOCK) < HEADER:  # too little for a record: the rest of a block is empty
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        message += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (WHOLE, LAST):
            yield Record.FromString(message)
            message = b""


def _values(updates: Iterator[Any]) -> dict[str, Any]:
    return {update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in updates}
