"""Where records of metrics go: `metrics.jsonl` always, Weights & Biases or TensorBoard on request.

None of them is a reason for a training to fail: what goes wrong while recording is told once, and the training goes on.
Only a package that is not installed is refused, when it is chosen (`check`).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

from vlatrain.config import LoggerConfig, UserError
from vlatrain.config.files import replace_file, write_file
from vlatrain.runs import RunFolder

log = logging.getLogger("vlatrain")

FLUSH_EVERY = 1.0  # seconds between flushes of `metrics.jsonl` to the disk
PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboard"}


class Sink(Protocol):
    """Takes records of metrics; the same as the training's own."""

    def begin(self, step: int) -> None:
        """A run starts, or continues after `step`."""
        ...

    def write(self, record: Mapping[str, Any]) -> None:
        """One record, with its `step`."""
        ...

    def close(self) -> None:
        """No more records."""
        ...


def check(config: LoggerConfig) -> list[str]:
    """What is wrong with the choice of logger: an unknown name, or a package that is not installed."""
    if config.name == "none":
        return []
    if config.name not in PACKAGES:
        return [f"logger.name={config.name} is unknown; there are none, {', '.join(PACKAGES)}"]
    package = PACKAGES[config.name]
    if importlib.util.find_spec(package) is None:
        return [f"logger={config.name} needs the package {package}: pip install {package}"]
    return []


def make_sinks(config: LoggerConfig, folder: Path, settings: Mapping[str, Any], main: bool = True) -> list[Sink]:
    """The loggers of a run.

    Args:
        config: what is chosen beside `metrics.jsonl`.
        folder: the run folder.
        settings: the run's configuration as plain values, for the loggers to show.
        main: whether this is the first process; the others record nothing.

    Raises:
        UserError: see `check`.
    """
    if problems := check(config):
        raise UserError(problems)
    if not main:
        return []
    history = RunFolder(folder).history
    sinks: list[Sink] = [Forgiving(JsonLines(history), history.name)]
    if config.name == "wandb":
        sinks.append(Forgiving(Wandb(config, folder, settings), "wandb"))
    elif config.name == "tensorboard":
        sinks.append(Forgiving(TensorBoard(folder / "tensorboard"), "tensorboard"))
    return sinks


class Forgiving:
    """Keeps a sink's failures from the training: the first is told, and the sink is left alone from then on.

    Args:
        sink: the sink.
        name: what to call it.
    """

    def __init__(self, sink: Sink, name: str) -> None:
        self.sink, self.name, self.failed = sink, name, False

    def begin(self, step: int) -> None:
        """See `Sink`."""
        self._try("begin", step)

    def write(self, record: Mapping[str, Any]) -> None:
        """See `Sink`."""
        self._try("write", record)

    def close(self) -> None:
        """See `Sink`."""
        self._try("close")

    def _try(self, method: str, *args: Any) -> None:
        if self.failed:
            return
        try:
            getattr(self.sink, method)(*args)
        except Exception as error:  # whatever a third-party logger raises
            self.failed = True
            log.warning("%s failed (%s: %s); the training goes on without it", self.name, type(error).__name__, error)


class JsonLines:
    """Records as lines of JSON in a file, flushed to the disk now and then. Continuing a run removes the lines of steps that will
    be done again. What cannot be written stays in memory until it can be.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[str] = []
        self.failed, self.flushed = False, 0.0

    def begin(self, step: int) -> None:
        """Keep what was recorded up to `step`; a line torn by a kill goes too."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        try:
            replace_file(self.path, "".join(line + "\n" for line in kept) if step else "")
        except OSError as error:
            self._describe(error)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line, after those that could not be written before."""
        self.waiting.append(json.dumps(record) + "\n")
        self._append(flush=time.monotonic() - self.flushed > FLUSH_EVERY)

    def close(self) -> None:
        """Write what is left; nothing is open."""
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


def flat(record: Mapping[str, Any], key_prefix: str = "") -> dict[str, float]:
    """Nested records as `lr/adapter`; what is no number is left out."""
    values: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{key_prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            values[key_prefix + key] = value
    return values


class Wandb:
    """Weights & Biases. Continuing a run continues the same one there (its id is kept in `wandb.json`).

    Args:
        config: project and mode.
        folder: the run folder.
        settings: the run's configuration.
    """

    def __init__(self, config: LoggerConfig, folder: Path, settings: Mapping[str, Any]) -> None:
        self.config, self.folder, self.settings = config, folder, settings
        self.run: Any = None

    def begin(self, step: int) -> None:
        """Start or continue the run there."""
        import wandb

        known = self.folder / "wandb.json"
        identity = (step and _id_in(known)) or uuid.uuid4().hex[:8]
        write_file(known, json.dumps({"id": identity}) + "\n")
        self.run = wandb.init(
            project=self.config.project,
            name=self.folder.name,
            id=identity,
            resume="allow",
            dir=str(self.folder),
            config=dict(self.settings),
            mode=cast(Any, self.config.mode),
        )
        self.run.define_metric("*", step_metric="step")  # its own step refuses to go back when a run continues

    def write(self, record: Mapping[str, Any]) -> None:
        """Log the record's numbers."""
        self.run.log(flat(record))

    def close(self) -> None:
        """Finish the run there."""
        if self.run is not None:
            self.run.finish()


def _id_in(file: Path) -> str:
    """The id that a run has there; empty: it has none, or one that cannot be read, which is told."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["id"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s): a new run begins there", file, error)
        return ""


class TensorBoard:
    """TensorBoard event files.

    Args:
        folder: where they go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def begin(self, step: int) -> None:
        """Start a file; later steps of earlier files are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Log the record's numbers."""
        for name, value in flat(record).items():
            if name != "step":
                self.writer.add_scalar(name, value, record["step"])
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
