"""Data sets of the Hugging Face hub, or local folders in its layout, through `datasets.load_dataset`.

Images are taken as they are stored and decoded by `vlatrain.data.images`, so that a data set looks the same from the
hub and from files. They stay on disk, memory-mapped by `datasets`, until they are needed; in a stream, which has no
disk, the samples that are taken are held in memory.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vlatrain.config.data import DataConfig
from vlatrain.config.spec import TaskSpec
from vlatrain.data.checks import Problems
from vlatrain.data.images import RULES, open_rgb
from vlatrain.data.rows import Builder, Column, find_columns

if TYPE_CHECKING:
    from PIL import Image


class RowPicture:
    """An encoded image in a row of a `datasets.Dataset`; the bytes are read from the data set's own files when needed.

    Args:
        dataset: the data set, its image column not decoded.
        index: the row.
        column: the image column.
        data: the encoded image, used for the key and not kept.
        name: what to call it in messages.
    """

    __slots__ = ("column", "dataset", "index", "key", "name", "size")

    def __init__(self, dataset: Any, index: int, column: str, data: bytes, name: str) -> None:
        self.dataset = dataset
        self.index = index
        self.column = column
        self.key = hashlib.blake2b(RULES + data, digest_size=16).hexdigest()
        self.name = name
        self.size: tuple[int, int] | None = None

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
        value = self.dataset[self.index][self.column]
        return io.BytesIO(value["bytes"] if isinstance(value, Mapping) else value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowPicture) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


def read_split(config: DataConfig, split: str, spec: TaskSpec, limit: int | None, problems: Problems) -> Builder | None:
    """Read one split.

    Args:
        config: `data=hub`: path, subset, streaming, root, column map.
        split: the split's name in the data set.
        spec: the task's description.
        limit: streaming: samples to take.
        problems: where to report what is wrong.

    Returns:
        The builder with the samples, or None if the split could not be loaded at all.
    """
    assert config.path is not None
    name = f"{config.path}:{split}"
    try:
        dataset = _load(config, split)
        if config.streaming:
            rows = _stream_rows(dataset)
            first = next(rows, None)
            names = list(dataset.features or (first or {}))
        else:
            names = dataset.column_names
        columns = find_columns(names, config.columns, spec, name, problems)
        if columns is None:
            return None
        root = config.root or (config.path if os.path.isdir(config.path) else "")
        builder = Builder(columns, spec, name, os.path.expanduser(root), problems)
        if not config.streaming:
            _add_all(dataset, columns, builder, name)
        elif first is not None:
            _add_some(first, rows, dataset.features, builder, limit)
    except ImportError as error:
        if error.name != "datasets":
            raise
        problems.add("hub", "data=hub needs the datasets package: pip install datasets")
        return None
    except Exception as error:  # the loader passes on whatever its many readers and clients raise
        problems.add("hub", _message(config, split, error))
        return None
    builder.finish()
    return builder


def _load(config: DataConfig, split: str) -> Any:
    """The split, images left encoded."""
    import datasets

    assert config.path is not None
    path = os.path.expanduser(config.path)
    dataset = datasets.load_dataset(
        path, config.subset, split=split, streaming=config.streaming, trust_remote_code=False
    )
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def _add_all(dataset: Any, columns: Mapping[str, Column], builder: Builder, name: str) -> None:
    used = dataset.select_columns(list(dict.fromkeys(column.name for column in columns.values())))
    column = columns["image"].name
    images = used.select_columns([column])
    for index, record in enumerate(used):
        value = record[column]
        data = value.get("bytes") if isinstance(value, Mapping) else value
        picture = None
        if isinstance(data, bytes) and data:
            picture = RowPicture(images, index, column, data, f"{name}[{index}]")
        builder.add((f"[{index}]", _with_names(record, used.features)), picture)


def _add_some(
    first: dict[str, Any], rows: Iterator[dict[str, Any]], features: Any, builder: Builder, limit: int | None
) -> None:
    """Take samples off a stream until `limit` are there and the next row would begin another."""
    record: dict[str, Any] | None = first
    index = 0
    while record is not None:
        picture = builder.picture(record, f"{builder.name}[{index}]")
        if limit is not None and len(builder.samples) >= limit and (picture is None or builder.starts_sample(picture)):
            return
        if picture is not None:
            builder.add((f"[{index}]", _with_names(record, features)), picture)
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
    if isinstance(error, ConnectionError | TimeoutError) or "hub can't be reached" in reason:
        return f"the hub cannot be reached for {wanted} ({reason}): {elsewhere}"
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return f"the hub has no readable {wanted} ({reason}): check data.path, log in if it is private; {elsewhere}"
    return f"{wanted} cannot be loaded ({reason}): check data.path, data.subset and the names of the splits"
