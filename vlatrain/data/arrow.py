"""Rows of Parquet and Arrow files, through pyarrow. Class labels that `datasets` stores as numbers are given by their names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vlatrain.config.checks.data_files import PARQUET
from vlatrain.data.checks import Problems
from vlatrain.data.tables import Row, Table

BATCH = 1024  # rows that are turned into Python objects at once


def arrow_rows(files: Sequence[Path], table: Table, problems: Problems) -> Iterator[Row]:
    """The rows of files, one after the other, each named by its number in all of them.

    Args:
        files: Parquet or Arrow files, the latter as files or as streams.
        table: gets the columns.
        problems: where to report a file that cannot be read.
    """
    try:
        import pyarrow
    except ImportError:
        problems.add("data files", f"{table.name}: reading Parquet and Arrow needs pyarrow: pip install pyarrow")
        return
    number = 0
    for file in files:
        kind = "Parquet" if file.suffix.lower() in PARQUET else "Arrow"
        try:
            with ExitStack() as stack:
                schema, batches = _opened(file, kind, stack)
                table.columns += [name for name in schema.names if name not in table.columns]
                names = class_names(schema.metadata)
                for batch in batches:
                    for record in batch.to_pylist():
                        yield f"[{number}]", _with_names(record, names)
                        number += 1
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            problems.add("bad files", f"{table.name}: not {kind} that can be read: {reason}")


def _opened(file: Path, kind: str, stack: ExitStack) -> tuple[Any, Iterator[Any]]:
    """The schema of a file and its record batches."""
    import pyarrow
    import pyarrow.parquet

    if kind == "Parquet":
        parquet = stack.enter_context(pyarrow.parquet.ParquetFile(file))
        return parquet.schema_arrow, parquet.iter_batches(batch_size=BATCH)
    source = stack.enter_context(pyarrow.memory_map(str(file)))
    try:
        opened = stack.enter_context(pyarrow.ipc.open_file(source))
        batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
        return opened.schema, batches
    except pyarrow.ArrowInvalid:  # what datasets writes is a stream
        source.seek(0)
        stream = stack.enter_context(pyarrow.ipc.open_stream(source))
        return stream.schema, iter(stream)


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """By column the names of its class labels, where `datasets` wrote them into the schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _with_names(record: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    for column, labels in names.items():
        number = record.get(column)
        if isinstance(number, int):
            record[column] = labels[number] if 0 <= number < len(labels) else None  # -1: not labelled
    return record
