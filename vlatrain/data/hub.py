"""Data sets of the Hugging Face hub, or local folders in its layout, through `datasets.load_dataset`.

Images are taken as they are stored and decoded by `vlatrain.data.images`, so that a data set looks the same from the
hub and from files. They stay on disk, memory-mapped by `datasets`, until they are needed; in a stream, which has no
disk, the samples that are taken are held in memory.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vlatrain.config import hub, hub_client
from vlatrain.config.data import DataConfig
from vlatrain.config.task import TaskConfig
from vlatrain.data.checks import Problems
from vlatrain.data.columns import Column, absent_column, check_groups, find_columns, said_of
from vlatrain.data.images import RULES, Header, open_rgb
from vlatrain.data.rows import Builder
from vlatrain.data.splits import SPLIT, SplitRows, rows_by_split
from vlatrain.data.tables import Row, Table

if TYPE_CHECKING:
    from PIL import Image


log = logging.getLogger("vlatrain")

SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder
SEEN = 100  # rows from which it is seen what a column holds


class RowPicture:
    """An encoded image in a row of a `datasets.Dataset`; the bytes are read from the data set's own files when needed.

    Args:
        dataset: the data set, its image column not decoded.
        index: the row.
        column: the image column; a cell may be a list of one image.
        data: the encoded image, used for the key and not kept.
        name: what to call it in messages.
    """

    __slots__ = ("column", "dataset", "header", "index", "key", "name")

    def __init__(self, dataset: Any, index: int, column: str, data: bytes, name: str) -> None:
        self.dataset = dataset
        self.index = index
        self.column = column
        self.key = hashlib.blake2b(RULES + data, digest_size=16).hexdigest()
        self.name = name
        self.header: Header | None = None

    @property
    def identity(self) -> str:
        """What tells this picture from others: its content."""
        return self.key

    def load(self) -> Image.Image:
        """The upright RGB image. Raises `UserError` with the picture's name."""
        return self.load_at(0)

    def load_at(self, side: int) -> Image.Image:
        """See `vlatrain.data.images.load_at`."""
        with self.open() as file:
            return open_rgb(file.read(), self.name, side)

    def open(self) -> BinaryIO:
        """The stored bytes, as a file to be closed."""
        return io.BytesIO(_encoded(self.dataset[self.index][self.column]) or b"")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowPicture) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


def _encoded(value: Any) -> bytes | None:
    """The encoded image in a cell, or in a list of one; None: it is not in the data set's own files."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    data = value.get("bytes") if isinstance(value, Mapping) else value
    return data if isinstance(data, bytes) and data else None


@dataclass
class Hub:
    """The splits of a data set, each loaded once, however many of ours are in it.

    Args:
        config: `data=hub`: path, subset, streaming, root, column map.
        task: the task.
        problems: where to report what is wrong.
        splits_off: whether samples of train are to be split off for evaluation.
    """

    config: DataConfig
    task: TaskConfig
    problems: Problems
    splits_off: bool = False
    _datasets: dict[str, Any] = field(default_factory=dict)
    _marks: dict[str, SplitRows | None] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)

    def split(self, split: str) -> Builder | None:
        """The samples of the data set's split that is named for one of ours: of one with a split column those of ours, else all.

        Returns:
            The builder with the samples, or None if there is none, or the split could not be loaded at all.
        """
        return self._guarded(getattr(self.config, split), lambda named: self._split(split, named))

    def marked(self, split: str) -> Builder | None:
        """The samples that the split column of the training data gives to another split; None if it gives none."""
        if self.config.streaming or self.config.train is None:
            return None
        return self._guarded(self.config.train, lambda named: self._marked(split, named))

    def _guarded(self, named: str, read: Callable[[str], Builder | None]) -> Builder | None:
        """What is read; None, which is reported once, where it cannot be."""
        if named in self._failed:
            return None
        with hub_client.watched() if _repository(self.config) else nullcontext():
            try:
                return read(named)
            except ImportError as error:
                if error.name != "datasets":
                    raise
                self.problems.add("hub", "data=hub needs the datasets package: pip install datasets")
            except Exception as error:  # the loader passes on whatever its many readers and clients raise
                self.problems.add("hub", _message(self.config, named, error))
        self._failed.add(named)
        return None

    def _split(self, split: str, named: str) -> Builder | None:
        config = self.config
        groups = config.groups if split != "train" or self.splits_off else None
        if config.streaming:
            limit = config.train_size if split == "train" else config.eval_size
            if self.splits_off and split == "train":
                limit = (config.train_size or 0) + (config.eval_size or 0)
            return self._streamed(named, limit, groups)
        dataset, marks = self._dataset(named), self._by_split(named)
        rows = marks.of(split, f"data.{split}={named}", self.problems) if marks else None
        if rows is None or len(rows) == len(dataset):
            return self._built(named, groups, range(len(dataset)))
        return self._built(named, groups, _places(rows)) if rows else None

    def _marked(self, split: str, named: str) -> Builder | None:
        marks = self._by_split(named)
        return (
            self._built(named, self.config.groups, _places(marks.rows[split])) if marks and marks.rows[split] else None
        )

    def _dataset(self, named: str) -> Any:
        if named not in self._datasets:
            self._datasets[named] = _load(self.config, named)
        return self._datasets[named]

    def _by_split(self, named: str) -> SplitRows | None:
        """The rows by split, if there is a split column; of each only what that says."""
        if named not in self._marks:
            config, dataset = self.config, self._dataset(named)
            column = config.columns.split if config.columns.split is not None else SPLIT
            table = Table(f"{config.path}:{named}", dataset.column_names)
            if column in table.columns:
                said = dataset.select_columns([column])
                table.rows = [(f"[{place}]", _with_names(row, said.features)) for place, row in enumerate(said)]
            self._marks[named] = rows_by_split(table, config.columns, config.split, self.problems)
        return self._marks[named]

    def _built(self, named: str, groups: Sequence[str] | None, places: Sequence[int]) -> Builder | None:
        dataset, name = self._dataset(named), f"{self.config.path}:{named}"
        seen = dataset.select(places[:SEEN]).to_list()
        made = self._builder(name, dataset.column_names, seen, groups)
        if made is None:
            return None
        columns, builder = made
        _add_all(dataset, places, columns, builder, name, [] if groups is None else _plain(dataset.features))
        builder.finish()
        return builder

    def _streamed(self, named: str, limit: int | None, groups: Sequence[str] | None) -> Builder | None:
        dataset = _load(self.config, named)
        rows = _stream_rows(dataset)
        seen = list(itertools.islice(rows, 1))
        name, columns = f"{self.config.path}:{named}", list(dataset.features or (seen or [{}])[0])
        if SPLIT in columns and self.config.columns.split is None:
            log.warning("%s: a stream is taken as it comes, whatever its column '%s' says", name, SPLIT)
        made = self._builder(name, columns, seen, groups)
        if made is None:
            return None
        if seen:
            _add_some(seen[0], rows, dataset.features, made[1], limit)
        made[1].finish()
        return made[1]

    def _builder(
        self, name: str, names: Sequence[str], seen: Sequence[Mapping[str, Any]], groups: Sequence[str] | None
    ) -> tuple[dict[str, Column], Builder] | None:
        """The columns of rows, and what makes samples of them; None if one is absent, which is reported."""
        config, task, problems = self.config, self.task, self.problems
        check_groups(names, groups or (), name, problems)
        columns = find_columns(names, config.columns, task.spec, name, problems, records=seen, wording=task.wording)
        if columns is None:
            return None
        for said in said_of(columns):
            log.info("%s: %s", name, said)
        path = config.path or ""
        builder = Builder(
            columns,
            task.spec,
            name,
            os.path.expanduser(config.root or (path if os.path.isdir(path) else "")),
            problems,
            text_only=config.text_only,
            absent="" if "image" in columns else absent_column("image", config.columns, names, name, seen),
            form=config.boxes,
            groups=groups,
            most=config.max_images,
            wording=task.wording,
        )
        return columns, builder


def _places(marked: Sequence[Row]) -> list[int]:
    """The places of rows, which are called after them."""
    return [int(place[1:-1]) for place, _ in marked]


def _repository(config: DataConfig) -> str:
    """The name on the hub of what is to be read; empty: it is a folder of this machine, or elsewhere."""
    path = config.path or ""
    is_name = not path.startswith((".", "/", "~")) and "://" not in path and path.count("/") <= 1
    return path if is_name and not os.path.isdir(path) else ""


def _refusal(config: DataConfig) -> Exception | None:
    """Why the hub does not give a data set, by its client's own error, of which `datasets` makes others. It may be in the cache all
    the same. Asked for is the data set's card, as `datasets` does, which then finds it there."""
    if not (name := _repository(config)):
        return None
    from huggingface_hub import errors, hf_hub_download

    try:
        hf_hub_download(name, "README.md", repo_type="dataset", revision=config.revision)
    except errors.LocalEntryNotFoundError as error:
        return error
    except errors.EntryNotFoundError:  # a data set without a card
        return None
    except Exception as error:  # the client passes on whatever its transport raises
        return error
    return None


def _refuse_other_revision(config: DataConfig, dataset: Any) -> None:
    """Where the hub does not answer, `datasets` takes whatever commit is in its cache."""
    name, wanted = _repository(config), config.revision
    if not name or not wanted or config.streaming or not dataset.cache_files:
        return
    commit = hub.commit(name, wanted, "datasets") or wanted
    there = Path(dataset.cache_files[0]["filename"]).parent.name
    if there != commit:
        raise ValueError(f"the hub gives none of data.revision={wanted}, and what the cache has is {there}")


def _load(config: DataConfig, split: str) -> Any:
    """The split, images left encoded."""
    import datasets

    assert config.path is not None
    path = os.path.expanduser(config.path)
    if not config.streaming and any(os.path.isfile(os.path.join(path, name)) for name in SAVED):
        dataset = datasets.load_from_disk(path)
        if isinstance(dataset, datasets.DatasetDict):
            dataset = dataset[split]
        elif split != "train":
            raise ValueError("the folder holds a single data set, which goes by the name of train")
    else:
        refused = _refusal(config)
        try:
            dataset = datasets.load_dataset(
                path,
                config.subset,
                split=split,
                streaming=config.streaming,
                revision=config.revision,
                trust_remote_code=False,
            )
        except Exception as error:
            if refused is None:
                raise
            raise refused from error
        _refuse_other_revision(config, dataset)
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return dataset


def _plain(features: Any) -> list[str]:
    """The columns of numbers, texts and class labels."""
    import datasets

    kinds = (datasets.Value, datasets.ClassLabel)
    return [name for name, kind in features.items() if isinstance(kind, kinds) and "binary" not in kind.dtype]


def _add_all(
    dataset: Any,
    places: Sequence[int],
    columns: Mapping[str, Column],
    builder: Builder,
    name: str,
    others: Sequence[str],
) -> None:
    read = [name for column in columns.values() for name in column.reads]
    used = dataset.select_columns(list(dict.fromkeys([*read, *others])))
    shown = [columns[field].name for field in ("image", "images") if field in columns and not columns[field].path]
    images = {column: used.select_columns([column]) for column in shown}
    for index, record in zip(places, used.select(places), strict=True):
        held = [(column, data) for column in shown if (data := _encoded(record[column]))]
        picture = None
        if len(held) == 1 and not any(record[column] for column in shown if column != held[0][0]):
            column, data = held[0]
            picture = RowPicture(images[column], index, column, data, f"{name}[{index}]")
        builder.add((f"[{index}]", _with_names(record, used.features)), picture)


def _add_some(
    first: dict[str, Any], rows: Iterator[dict[str, Any]], features: Any, builder: Builder, limit: int | None
) -> None:
    """Take samples off a stream until `limit` are there and the next row would begin another."""
    record: dict[str, Any] | None = first
    index = 0
    while record is not None:
        row = f"[{index}]", _with_names(record, features)
        if limit is not None and len(builder.samples) >= limit and builder.starts_sample(row):
            return
        builder.add(row)
        record, index = next(rows, None), index + 1


def _stream_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a stream, remote images fetched."""
    for record in dataset:
        for name, value in record.items():
            if isinstance(value, Mapping) and value.get("bytes") is None and "://" in str(value.get("path")):
                import fsspec

                with fsspec.open(value["path"], "rb") as file:
                    record[name] = {"bytes": file.read(), "path": None}
        yield record


def _with_names(record: dict[str, Any], features: Any) -> dict[str, Any]:
    """The record with class labels by name: the hub stores them as numbers."""
    import datasets

    for name, feature in (features or {}).items():
        if isinstance(feature, datasets.ClassLabel) and isinstance(record.get(name), int):
            record[name] = feature.int2str(record[name]) if record[name] >= 0 else None  # -1: not labelled
    return record


def _message(config: DataConfig, split: str, error: Exception) -> str:
    """What was wanted, why it failed, and what would avoid it, in one line."""
    import datasets

    path = config.path or ""
    wanted = f"data set '{path}'" + (f", subset '{config.subset}'" if config.subset else "") + f", split '{split}'"
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason if len(reason) <= 300 else reason[:297] + "..."
    local = Path(path).expanduser()
    if not local.exists() and path.startswith((".", "/", "~")):
        return f"data.path={path}: no such folder"
    elsewhere = "set data.path=FOLDER to a local copy in the hub's layout, or data=files data.train=FILE"
    if _repository(config) and (said := hub_client.reason(error, path, config.revision, kind="data")):
        return f"no {wanted}: {said}; {elsewhere}"
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return f"the hub has no readable {wanted} ({reason}): check data.path, log in if it is private; {elsewhere}"
    return f"{wanted} cannot be loaded ({reason}): check data.path, data.subset and the names of the splits"
