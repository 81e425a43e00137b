"""Columns of samples in Arrow files, and how their values are had back.

A field whose values are all the same has no column. Texts, and lists of texts, are columns of these; other values are JSON texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow

from vlatrain.data.sample import Turn

NEAR = 8_000_000  # bytes of texts that are read at once, though not all are asked for


class NotStorableError(Exception):
    """There is something in the samples that files cannot give back as it is, and what."""


class Values(Protocol):
    """A column."""

    def among(self, places: np.ndarray) -> list[Any]:
        """The values at some places."""
        ...


class Same:
    """A value that is everywhere the same."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def among(self, places: np.ndarray) -> list[Any]:
        """The value, as often."""
        return [self.value] * len(places)


class Numbers:
    """Integers."""

    def __init__(self, array: Any) -> None:
        self.array = np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype(), len(array))

    def among(self, places: np.ndarray) -> list[Any]:
        """Those at some places."""
        return self.array[places].tolist()  # type: ignore[no-any-return]


class Encoded:
    """Bytes."""

    def __init__(self, array: Any) -> None:
        _, offsets, data = array.buffers()
        self.offsets = np.frombuffer(offsets, np.int64, len(array) + 1)
        self.data = memoryview(data) if data else memoryview(b"")

    def among(self, places: np.ndarray) -> list[Any]:
        """Those at some places."""
        starts, stops = self.offsets[places], self.offsets[places + 1]
        first = int(starts.min(initial=len(self.data)))
        last = int(stops.max(initial=first))
        if last - first > NEAR:
            return [
                self._cut(self.data[start:end], [0], [end - start])[0] for start, end in zip(starts, stops, strict=True)
            ]
        return self._cut(self.data[first:last], (starts - first).tolist(), (stops - first).tolist())

    def _cut(self, block: memoryview, starts: list[int], stops: list[int]) -> list[Any]:
        """The values in some bytes."""
        return [bytes(block[start:end]) for start, end in zip(starts, stops, strict=True)]


class Texts(Encoded):
    """Texts, as UTF-8."""

    def _cut(self, block: memoryview, starts: list[int], stops: list[int]) -> list[Any]:
        whole = bytes(block)
        bounds = zip(starts, stops, strict=True)
        if whole.isascii():
            text = whole.decode()
            return [text[start:end] for start, end in bounds]
        return [whole[start:end].decode() for start, end in bounds]


class Lists:
    """Tuples of texts."""

    def __init__(self, array: Any) -> None:
        self.offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1)
        self.items = Texts(array.values)

    def among(self, places: np.ndarray) -> list[Any]:
        """Those at some places."""
        starts, stops = self.offsets[places], self.offsets[places + 1]
        bounds = np.concatenate([[0], np.cumsum(stops - starts)])  # of each tuple, in the texts of all
        # place of each text: that of its tuple's first, and how many texts of the tuple are before it
        flat = self.items.among(np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], stops - starts))
        return [tuple(flat[start:end]) for start, end in pairwise(bounds.tolist())]


class Documents(Texts):
    """Values as JSON texts.

    Args:
        field: of samples, to which the values belong.
    """

    def __init__(self, array: Any, field: str) -> None:
        super().__init__(array)
        self.field = field

    def among(self, places: np.ndarray) -> list[Any]:
        """Those at some places."""
        return [_from_json(self.field, text) for text in super().among(places)]


def _to_json(field: str, value: Any) -> str:
    return json.dumps([astuple(turn) for turn in value] if field == "turns" else value)


def _from_json(field: str, text: str) -> Any:
    value = _tuples(json.loads(text))
    return tuple(Turn(*turn) for turn in value) if field == "turns" else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def read_columns(folder: Path, name: str, about: Mapping[str, Any]) -> dict[str, Values]:
    """The columns of a file, mapped.

    Args:
        folder: the folder.
        name: of the file.
        about: what `write_columns` has noted.
    """
    columns: dict[str, Values] = {field: Same(_tuples(value)) for field, value in about["same"][name].items()}
    with pyarrow.memory_map(str(folder / f"{name}.arrow")) as source:
        table = pyarrow.ipc.open_stream(source).read_all()
    kinds = about["documents"][name]
    for field in table.column_names:
        array = table.column(field).chunk(0)
        if field in kinds:
            columns[field] = Documents(array, field)
        elif pyarrow.types.is_large_list(array.type):
            columns[field] = Lists(array)
        elif pyarrow.types.is_large_string(array.type):
            columns[field] = Texts(array)
        else:
            columns[field] = Encoded(array) if pyarrow.types.is_large_binary(array.type) else Numbers(array)
    return columns


def write_columns(
    folder: Path, name: str, columns: Mapping[str, list[Any]], arrays: dict[str, Any], about: dict[str, Any]
) -> None:
    """Write a file, and note beside it what it lacks.

    Args:
        folder: the folder.
        name: of the file.
        columns: by field, values of any kind.
        arrays: further columns.
        about: gets the values that are all the same, which columns are JSON, and the number of rows.

    Raises:
        NotStorableError: values that do not come back as they are.
    """
    same, documents = about["same"].setdefault(name, {}), about["documents"].setdefault(name, [])
    about["numbers"][name] = len(next(iter(columns.values())))
    for field, values in columns.items():
        first = values[0]
        texts, lists = _are_texts(values), all(type(value) is tuple and _are_texts(value) for value in values)
        if (texts or lists) and all(value == first for value in values):
            same[field] = first
            continue
        try:
            if texts:
                arrays[field] = pyarrow.array(values, pyarrow.large_string())
            elif lists:
                arrays[field] = pyarrow.array(values, pyarrow.large_list(pyarrow.large_string()))
            else:
                lines = [_to_json(field, value) for value in values]
                if any(repr(_from_json(field, line)) != repr(value) for line, value in zip(lines, values, strict=True)):
                    raise NotStorableError(f"{field} has values that JSON does not give back")
                arrays[field] = pyarrow.array(lines, pyarrow.large_string())
                documents.append(field)
        except (TypeError, ValueError) as error:  # a lone surrogate, or an object of some kind
            raise NotStorableError(f"{field}: {error}") from error
    batch = pyarrow.record_batch(list(arrays.values()), names=list(arrays))
    with pyarrow.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, batch.schema) as out:
        out.write_batch(batch)


def _are_texts(values: Sequence[Any]) -> bool:
    return all(type(value) is str for value in values)
