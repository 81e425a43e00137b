"""What an evaluation or a prediction has found so far, on disk: whatever ends it, the same command goes on after the last batch.

A journal is a file of lines, each a checksum and JSON. The first says what all that follows is found of; each other has the result
of a batch. A line that a kill has torn, or that has changed, is not believed, nor is what stands behind it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import logging
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from vlatrain.backbones.describe import checkpoints_of
from vlatrain.config import TrainConfig, UserError
from vlatrain.config.files import MANIFEST
from vlatrain.config.memo import key_of
from vlatrain.data.content import content
from vlatrain.data.sample import Sample
from vlatrain.runs import RunFolder, config_text, versions
from vlatrain.training.signals import Interrupted, name_of, signal_of

log = logging.getLogger("vlatrain")

ENDING = ".part"  # of a journal's name
EVERY = 1.0  # seconds between writes
BEGUN_ANEW = "nothing is kept; the same command begins anew"


class Journal:
    """Results of batches, kept while entered, and removed when the work is done.

    Attributes:
        known: how many results were found before.

    Args:
        path: its file; None: nothing is kept (processes other than the first).
        key: what the results are of, as `identity` says.

    Raises:
        UserError: on entering: the file cannot be written.
    """

    def __init__(self, path: Path | None, key: str = "") -> None:
        self.path, self.key, self.known = path, key, 0
        self._found: dict[int, list[Any]] = {}  # by call
        self._calls = self._size = self._kept = 0
        self._file: IO[bytes] | None = None
        self._pending: list[tuple[int, Any]] = []
        self._written, self._failed = time.monotonic(), False

    def __enter__(self) -> Journal:
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a+b", buffering=0)
            except OSError as error:
                raise UserError(
                    f"{self.path.parent} cannot be written ({error.strerror}): choose another output"
                ) from error
            self._begin(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None and self.path is not None:
            if error is not None:
                self._write()
            if error is None or not self.results:
                self.path.unlink(missing_ok=True)
            self._file.close()
        if isinstance(error, KeyboardInterrupt):
            saved = f"what was found in {self.results:,} batches is in {self.path}. To continue: the same command"
            raise stopped(error, saved if self.results else BEGUN_ANEW) from error

    @property
    def results(self) -> int:
        """How many results there are, in the file or on their way to it."""
        return self._kept + len(self._pending)

    @property
    def described(self) -> str:
        """What there is to say of what was found before; empty: nothing was."""
        return f"Continuing: what was found in {self.known:,} batches is known from {self.path}" if self.known else ""

    def begin(self, device: torch.device | str) -> tuple[int, list[Any]]:
        """A number for the next pass over samples, and what is known of it, with tensors where they were."""
        call, self._calls = self._calls, self._calls + 1
        return call, [_plain_again(value, device) for value in self._found.get(call, [])]

    def add(self, call: int, result: Any) -> None:
        """Keep the next result of a pass."""
        if self._file is None:
            return
        self._pending.append((call, result))
        if time.monotonic() - self._written >= EVERY:
            self._write()

    def _begin(self, file: IO[bytes]) -> None:
        """Read what is there, and cut off what is not believed."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # what it keeps is not disturbed
            log.warning(
                "%s: another process is at the same work; nothing is kept of this one's until it is done", self.path
            )
            self.path = self._file = None
            file.close()
            return
        except OSError:  # a file system without locks
            pass
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        before = _read(lines[0]) if lines else None
        if before == self.key:
            self._size = len(lines[0])
            for line in lines[1:]:
                if not (isinstance(entry := _read(line), list) and len(entry) == 2):
                    break
                self._found.setdefault(entry[0], []).append(entry[1])
                self._size += len(line)
                self._kept += 1
        elif before is not None:
            log.warning("%s is of another model, other samples or other settings: it is begun anew", self.path)
        self.known = self._kept
        file.truncate(self._size)

    def _write(self) -> None:
        """Write what is on its way. What cannot be written now is tried again with the next."""
        assert self._file is not None
        self._written = time.monotonic()
        try:
            entries: list[Any] = [[call, _encoded(result)] for call, result in self._pending]
            data = b"".join(map(_line, entries if self._size else [self.key, *entries]))
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
            os.fsync(self._file.fileno())
        except (OSError, TypeError) as error:
            with suppress(OSError):
                self._file.truncate(self._size)
            if not self._failed:
                log.warning("%s cannot be written (%s); what is stopped now begins anew", self.path, error)
            self._failed = True
            return
        self._size += len(data)
        self._kept += len(entries)
        self._pending = []


def stopped(error: KeyboardInterrupt, then: str) -> Interrupted:
    """The end that a signal makes of an evaluation or a prediction, and what is left of it."""
    number = signal_of(error)
    return Interrupted(number, f"Stopped by {name_of(number)}: {then}")


def identity(verb: str, config: TrainConfig, run: Path, samples: Sequence[Sample], more: Sequence[str] = ()) -> str:
    """A hash of all that results depend on: settings, versions, samples with their images, what was trained, and the weights.

    Args:
        verb: the word of the command line.
        config: its configuration.
        run: the run that is asked.
        samples: the samples.
        more: texts that are asked about besides.
    """
    adapter = RunFolder(run).adapter
    files = sorted(adapter.rglob("*")) if adapter.is_dir() else []
    trained: list[Any] = [path.read_bytes() for path in files if path.name == MANIFEST] or _states(files)
    weights = [] if config.model.random_init else [*checkpoints_of(config.model, config.task.name).values()]
    folders = [Path(name).expanduser() for name in weights]
    local = [_states(sorted(folder.iterdir())) for folder in folders if folder.is_dir()]
    return key_of(verb, versions(), config_text(config), content(samples), trained, local, [*more])


def _states(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Names, sizes and dates of files."""
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _line(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read(line: bytes) -> Any:
    """The value of a line; None: it is torn, or has changed."""
    with suppress(ValueError, RecursionError):
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        if line.endswith(b"\n") and int(checksum, 16) == zlib.crc32(text):
            return json.loads(text)
    return None


def _encoded(value: Any) -> Any:
    """A result as JSON has it: tensors by their bytes, tuples and dictionaries marked."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        about = [str(value.dtype).removeprefix("torch."), [*value.shape], value.device.type != "cpu"]
        return {"tensor": [*about, base64.b64encode(data).decode()]}
    if isinstance(value, Mapping):
        return {"dict": [[_encoded(key), _encoded(one)] for key, one in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(one) for one in value]}
    if isinstance(value, list):
        return [_encoded(one) for one in value]
    return value if isinstance(value, (str, int, float, type(None))) else value.item()  # a number of numpy's


def _plain_again(value: Any, device: torch.device | str) -> Any:
    """What `_encoded` was given."""
    if isinstance(value, list):
        return [_plain_again(one, device) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        name, shape, on_device, text = inner
        flat = torch.frombuffer(bytearray(base64.b64decode(text)) or bytearray(1), dtype=torch.uint8)
        tensor = flat[: len(flat) if text else 0].view(getattr(torch, name)).reshape(shape)
        return tensor.to(device) if on_device else tensor
    made = [_plain_again(one, device) for one in inner]
    return tuple(made) if kind == "tuple" else dict(made)
