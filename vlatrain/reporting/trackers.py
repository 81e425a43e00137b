"""Where records of metrics go: `metrics.jsonl` always, and the trackers of `accelerate.tracking` that are asked for.

None of them is a reason for a run to fail: what goes wrong while recording is told once, and the run goes on.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vlatrain.config import LoggerConfig, TrainConfig
from vlatrain.config.files import write_file
from vlatrain.config.keys import leaves
from vlatrain.data.images import is_shown
from vlatrain.data.sample import Sample
from vlatrain.reporting.history import JsonLines
from vlatrain.runs import COMMAND, RunFolder

log = logging.getLogger("vlatrain")

THUMBNAIL = 256  # pixels of the longer side of an image in a table
SIGNAL = 128  # an exit status above is that of a training that a signal ended after saving
IMAGE = "image"  # the column with the images
GROUPS = ("parameters", "speed", "memory")  # of a `metrics.json`, what is shown beside the scores


@dataclass(frozen=True)
class Table:
    """Predictions, a row each.

    Attributes:
        columns: names of the columns.
        rows: their values: numbers, texts, and in the column `IMAGE` images of PIL; None where there is nothing.
    """

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Outcome:
    """What a run, or a use of one, came to.

    Attributes:
        values: numbers by name.
        tables: tables of predictions by name.
        adapter: the folder of what was trained; None: it is not to be sent.
    """

    values: Mapping[str, Any]
    tables: Mapping[str, Table] = field(default_factory=dict)
    adapter: Path | None = None


def outcome_of(metrics: Mapping[str, Any], tables: Mapping[str, Table], adapter: Path | None) -> Outcome:
    """What a training came to.

    Args:
        metrics: the content of its `metrics.json`.
        tables: its predictions, by split.
        adapter: the folder of what was trained, if anything was.
    """
    splits = {"eval": metrics, **{name: metrics[name] for name in ("test", "frozen") if name in metrics}}
    scores = {name: record.get("metrics") or {} for name, record in splits.items()}
    facts = {name: metrics[name] for name in GROUPS if name in metrics}
    best = {"best_step": (metrics.get("training") or {}).get("best_step")}
    named = {f"predictions/{split}": table for split, table in tables.items()}
    return Outcome({**scores, **facts, **best}, named, adapter)


def tables_of(
    logger: LoggerConfig, records: Mapping[str, Sequence[Mapping[str, Any]]], samples: Mapping[str, Sequence[Sample]]
) -> dict[str, Table]:
    """The tables that trackers are given of predictions; none where there is no tracker, or none is wanted.

    Args:
        logger: which trackers there are, and the most rows of a table.
        records: predictions by name.
        samples: the samples by the same names.
    """
    if not (logger.trackers and logger.table):
        return {}
    return {name: table_of(own, samples[name], logger.table) for name, own in records.items()}


def table_of(records: Sequence[Mapping[str, Any]], samples: Sequence[Sample], most: int) -> Table:
    """The first predictions as a table, each with its image, if there is one.

    Args:
        records: predictions, with the `id` of their sample.
        samples: the samples.
        most: the most rows.
    """
    first, known = records[:most], {sample.id: sample for sample in samples}
    names = list(dict.fromkeys(name for record in first for name in record))
    numeric = {name for name in names if all(_is_number(record.get(name)) for record in first)}
    rows = [
        [_thumbnail(known.get(str(record.get("id")))), *(_cell(record.get(name), name in numeric) for name in names)]
        for record in first
    ]
    return Table([IMAGE, *names], rows)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(value: Any, numeric: bool) -> Any:
    if numeric or value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _thumbnail(sample: Sample | None) -> Image.Image | None:
    if sample is None or not is_shown(sample.image):
        return None
    with suppress(OSError, ValueError):  # it was read for the prediction, and may be gone since
        image = sample.image.load().copy()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return image
    return None


def flat(record: Mapping[str, Any], key_prefix: str = "") -> dict[str, float]:
    """Nested records as `lr/adapter`; what is no number is left out."""
    values: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{key_prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            values[key_prefix + key] = value
    return values


class Tracker:
    """One of the trackers of `accelerate.tracking`.

    Args:
        name: its name there.
        config: the run's configuration.
        folder: the run folder.
        continues: whether a finished run is used, and not trained.
    """

    def __init__(self, name: str, config: TrainConfig, folder: Path, continues: bool = False) -> None:
        self.name, self.config, self.folder, self.continues = name, config, folder, continues
        self.tracker: Any = None
        self.step: int | None = None

    def begin(self, step: int) -> None:
        """Start, or continue after `step`."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # without one the trackers refuse; that of a training is there already
        kind = LOGGER_TYPE_TO_CLASS[self.name]
        where = [str(self.folder)] if kind.requires_logging_directory else []
        project = "tensorboard" if self.name == "tensorboard" else self.config.logger.project
        self.tracker = kind(project, *where, **self.options(step))
        self.tracker.start()
        self.step = step
        if not self.continues:
            self.tracker.store_init_configuration(self.settings())

    def options(self, step: int) -> dict[str, Any]:
        """What the tracker is started with: TensorBoard hides the later steps of earlier files."""
        return {"purge_step": step + 1} if self.name == "tensorboard" and not self.continues else {}

    def settings(self) -> dict[str, Any]:
        """The run's configuration by dotted key, lists as text."""
        found = {key: value for key, value in leaves(asdict(self.config)).items() if value != {}}
        return {
            key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in found.items()
        }

    def write(self, record: Mapping[str, Any]) -> None:
        """Log the record's numbers."""
        self.step = record["step"]
        self.tracker.log({name: value for name, value in flat(record).items() if name != "step"}, step=self.step)

    def report(self, outcome: Outcome) -> None:
        """Log what the run came to, after its last step."""
        self.tracker.log(flat(outcome.values), step=self.step)

    def close(self, status: int) -> None:
        """Finish; with a status other than 0 it has failed."""
        if self.tracker is not None:
            self.tracker.finish()


class Wandb(Tracker):
    """Weights & Biases, with what only it has. A run is the same one there in all its sessions, and in the evaluations and
    predictions after it: `wandb.json` in the run folder keeps its id."""

    def begin(self, step: int) -> None:
        """Start or continue the run there."""
        super().begin(step)
        # its own step refuses to go back when a run continues
        self.tracker.tracker.define_metric("*", step_metric="step")

    def options(self, step: int) -> dict[str, Any]:
        """What `wandb.init` is given; of a finished run only what leads to it, as the rest is there."""
        logger, known = self.config.logger, self.folder / "wandb.json"
        before = _id_in(known) if step or self.continues else ""
        again, identity = bool(before), before or uuid.uuid4().hex[:8]
        write_file(known, json.dumps({"id": identity}) + "\n")
        where = {"id": identity, "resume": "allow", "dir": str(self.folder), "mode": logger.mode}
        where |= {"entity": logger.entity} if logger.entity else {}
        if again and self.continues:
            return where
        sweep = COMMAND.get().sweep
        return where | {
            "name": self.folder.name,
            "group": logger.group or (sweep.name if sweep else None),
            "tags": list(logger.tags),
            "notes": logger.notes,
            "job_type": logger.job_type,
        }

    def settings(self) -> dict[str, Any]:
        """The run's configuration, nested."""
        return asdict(self.config)

    def write(self, record: Mapping[str, Any]) -> None:
        """Log the record's numbers, `step` among them."""
        self.tracker.log(flat(record))

    def report(self, outcome: Outcome) -> None:
        """Numbers into the summary, predictions as tables with images, what was trained as an artifact."""
        import wandb

        run, values = self.tracker.tracker, flat(outcome.values)
        run.summary.update(values)
        for name, table in outcome.tables.items():
            rows = [[wandb.Image(one) if isinstance(one, Image.Image) else one for one in row] for row in table.rows]
            self.tracker.log_table(name, columns=table.columns, data=rows)
        if outcome.adapter is not None and self.config.logger.artifact:
            name = re.sub(r"[^\w.-]+", "-", f"adapter-{self.folder.name}")[:128]
            artifact = wandb.Artifact(name, type="model", metadata=values)
            artifact.add_dir(str(outcome.adapter))
            run.log_artifact(artifact)

    def close(self, status: int) -> None:
        """Finish the run there, as what it is: finished, failed, or stopped to be continued."""
        if self.tracker is not None:
            if status > SIGNAL:
                self.tracker.tracker.mark_preempting()
            self.tracker.tracker.finish(exit_code=status)


def _id_in(file: Path) -> str:
    """The id that a run has there; empty: it has none, or one that cannot be read, which is told."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["id"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s): a new run begins there", file, error)
        return ""


class Forgiving:
    """Keeps a sink's failures from the run: the first is told, and the sink is left alone from then on.

    Args:
        sink: the sink.
        name: what to call it.
    """

    def __init__(self, sink: Any, name: str) -> None:
        self.sink, self.name, self.failed = sink, name, False

    def begin(self, step: int) -> None:
        """See `Tracker`."""
        self._try("begin", step)

    def write(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._try("write", record)

    def report(self, outcome: Outcome) -> None:
        """See `Tracker`."""
        self._try("report", outcome)

    def close(self, status: int) -> None:
        """See `Tracker`."""
        self._try("close", status)

    def _try(self, method: str, *args: Any) -> None:
        if self.failed or not hasattr(self.sink, method):
            return
        try:
            getattr(self.sink, method)(*args)
        except Exception as error:  # whatever a third-party tracker raises
            self.failed = True
            said = " ".join(str(error).split())[:300]
            log.warning("%s failed (%s: %s); the run goes on without it", self.name, type(error).__name__, said)


Trackers = Callable[[TrainConfig], list[Forgiving]]
"""Makes the trackers that a run's configuration asks for."""


@contextmanager
def tracking(folder: Path, main: bool = True, continues: bool = False) -> Iterator[Trackers]:
    """While inside, what it gives makes the trackers of a run from its configuration; whatever ends the run, they are told how.

    Args:
        folder: the run folder.
        main: whether this is the first process; the others record nothing.
        continues: whether a finished run is used, and not trained: what is logged goes to that run.
    """
    sinks: list[Forgiving] = []

    def make(config: TrainConfig) -> list[Forgiving]:
        if main and not continues:
            history = RunFolder(folder).history
            sinks.append(Forgiving(JsonLines(history), history.name))
        for name in config.logger.trackers if main else ():
            kind = Wandb if name == "wandb" else Tracker
            sinks.append(Forgiving(kind(name, config, folder, continues), name))
        return sinks

    status = 1
    try:
        yield make
        status = 0
    except BaseException as error:
        status = getattr(error, "exit_status", 1)
        raise
    finally:
        for sink in sinks:
            sink.close(status)


def add_to_run(config: TrainConfig, folder: Path, outcome: Callable[[], Outcome]) -> None:
    """Log what a finished run was used for, to where its training was logged.

    Args:
        config: the configuration of the use.
        folder: the run folder.
        outcome: what it came to; asked for only where there is a tracker.
    """
    with tracking(folder, continues=True) as make:
        for sink in make(config):
            sink.begin(0)
            sink.report(outcome())
