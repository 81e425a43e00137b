"""What is read of a source: rows, each with its place and a value by column. Readers and layouts fill a table, and samples are made
of its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vlatrain.data.checks import Problems

Row = tuple[str, dict[str, Any]]  # place in the file, as `:12` or `[3]`; column -> value


@dataclass
class Table:
    """Rows of a data file, or of a folder.

    Attributes:
        name: what to call it in messages: the path as the user wrote it.
        columns: every column that occurs, in order of first appearance.
        rows: place and record of each row.
        delimited: whether it is a text with cells, such as CSV, which have no lists: a list is written in a cell as a text.
        layout: what it was recognised as, for messages; empty: rows as they are.
        images: the part of COCO that images are of, such as `val2014`, where the file names it: they are called after it.
        unanswered: whether its questions have their answers in a file of their own.
    """

    name: str
    columns: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    delimited: bool = False
    layout: str = ""
    images: str = ""
    unanswered: bool = False

    def add(self, value: Any, place: str, problems: Problems) -> None:
        """Add what stands at a place, which must be an object; reports it otherwise."""
        if not isinstance(value, dict):
            problems.add("bad lines", f"{self.name}{place}: expected an object {{...}}, found {type(value).__name__}")
            return
        if not self.columns or value.keys() - set(self.columns):
            self.columns += [key for key in value if key not in self.columns]
        self.rows.append((place, value))

    def extend(self, made: Iterable[Row]) -> None:
        """Add rows as a layout makes them."""
        for place, record in made:
            self.columns += [key for key in record if key not in self.columns]
            self.rows.append((place, record))
