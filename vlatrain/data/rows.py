"""From rows of a table to samples: which column holds what, and which rows are one sample.

- Question, answers and captions are as in `vlatrain.data.cells`. Empty texts among several are left out.
- A label is a text, a conversation as in `vlatrain.data.turns`.
- An image is a path relative to the image root, or (Parquet, hub) an encoded image.
- Every row is a sample, but of tasks whose description says `by_image`: there rows with the same image become one with several
  captions, in the order of the file.
- A sample's id is the `id` column where there is one (the first row's, of several), else its place: `t.jsonl:12`, `t.json[3]`.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlatrain.config.data import ColumnsConfig
from vlatrain.config.spec import TaskSpec
from vlatrain.data.cells import CellError, bare_numbers, check_weights, kind, parse_list, text, texts, with_weights
from vlatrain.data.checks import Problems
from vlatrain.data.features import picture_of
from vlatrain.data.files import Row
from vlatrain.data.images import BytesPicture, FilePicture, identity
from vlatrain.data.sample import Picture, Sample, Turn
from vlatrain.data.turns import turns

log = logging.getLogger("vlatrain")

DEFAULTS = {
    "id": ("id",),
    "image": ("image",),
    "question": ("question",),
    "answers": ("answer", "answers"),
    "weights": ("weights",),
    "captions": ("caption", "captions"),
    "label": ("label",),
    "conversations": ("conversations", "messages"),
}
# Names seen in public data sets, for "did you mean"; they are never taken without being asked for.
USUAL = {
    "image": ("img", "images", "image_path", "img_path", "file_name", "filename", "file", "path", "picture", "photo"),
    "question": ("questions", "query", "prompt", "text"),
    "answers": ("label", "labels", "multiple_choice_answer", "target", "response"),
    "captions": ("text", "texts", "sentence", "sentences", "description", "title", "alt"),
    "label": ("labels", "class", "class_name", "category", "target", "answer"),
    "conversations": ("conversation", "chat", "dialogue", "dialog", "turns", "texts"),
}


@dataclass(frozen=True)
class Column:
    """A field's column: its name in the data, and whether the user mapped it."""

    name: str
    mapped: bool


def find_columns(
    columns: Sequence[str], wanted: ColumnsConfig, spec: TaskSpec, name: str, problems: Problems, labelled: bool = True
) -> dict[str, Column] | None:
    """Match the fields a task needs with the columns there are.

    Args:
        columns: the columns of the data.
        wanted: the user's column map.
        spec: the task's description.
        name: what to call the data in messages.
        problems: where to report absent columns.
        labelled: whether the references (answers, captions, ...) must be there; without, only what is asked of the model must.

    Returns:
        Field -> column, or None if one that must be there is not.
    """
    required = ("image", *(spec.fields if labelled else spec.given))
    optional = ("id", *spec.fields, *spec.optional)
    found: dict[str, Column] = {}
    absent = False
    for field in dict.fromkeys((*required, *optional)):
        mapped: str | None = getattr(wanted, field)
        if field == "id" and mapped == "":
            continue
        names = (mapped,) if mapped is not None else DEFAULTS[field]
        column = next((candidate for candidate in names if candidate in columns), None)
        if column is not None:
            found[field] = Column(column, mapped is not None)
        elif field in required or (mapped is not None and labelled):  # a run's map may name columns only training has
            absent = True
            problems.add("absent columns", _absent(field, names, mapped, columns, name))
    return None if absent else found


def _absent(field: str, names: Sequence[str], mapped: str | None, columns: Sequence[str], name: str) -> str:
    there = ", ".join(columns) or "none"
    what = " or ".join(f"'{column}'" for column in names)
    start = f"{name}: no column {what}" + (f" (data.columns.{field}={mapped})" if mapped is not None else "")
    guess = _guess(field, names, columns)
    remedy = f"did you mean data.columns.{field}={guess}?" if guess else f"set data.columns.{field}=COLUMN"
    return f"{start}; the columns are {there}; {remedy}"


def _guess(field: str, names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The column most likely meant: by spelling, else by what such a column is usually called."""
    plain = {column.lower().replace("-", "_").strip(): column for column in reversed(columns)}
    for name in (*names, *DEFAULTS[field]):
        if close := difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.75):
            return plain[close[0]]
    return next((plain[usual] for usual in USUAL.get(field, ()) if usual in plain), None)


class Builder:
    """Turns rows into samples, one at a time, and reports what is wrong with each.

    Args:
        columns: field -> column, from `find_columns`.
        spec: the task's description.
        name: what to call the data in messages and in `Sample.source`.
        root: the folder that image paths are relative to.
        problems: where to report.
        labelled: whether the references must be there; without, every row is a sample.
        delimited: whether a cell's text may be a list, as in CSV and TSV.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        spec: TaskSpec,
        name: str,
        root: str,
        problems: Problems,
        labelled: bool = True,
        delimited: bool = False,
    ) -> None:
        self.samples: list[Sample] = []
        self.rejected: list[tuple[Picture, str]] = []  # pictures of rows that are wrong otherwise: to be checked too
        self._columns = columns
        self._grouped = labelled and spec.by_image
        self._labelled, self._delimited = labelled, delimited
        self._required = spec.fields if labelled else spec.given
        self.name = name
        self._short = os.path.basename(name.rstrip("/")) or name
        self.root = root
        self._problems = problems
        self._pictures: dict[str, FilePicture] = {}
        self._captions: dict[str, tuple[int, list[str]]] = {}  # image -> index of its sample, captions
        self._ids: dict[str, str] = {}
        # texts that were read as lists of bare numbers, and the first of them
        self._numbers, self._first_numbers = 0, ""

    def starts_sample(self, picture: Picture) -> bool:
        """Whether a row with this picture would be a new sample, not one more caption of a known one."""
        return not self._grouped or identity(picture) not in self._captions

    def picture(self, record: Mapping[str, Any], source: str) -> Picture | None:
        """The picture of a row; reports it and returns None if the cell holds none."""
        column = self._columns["image"].name
        try:
            return self._picture(record.get(column), source)
        except CellError as error:
            self._problems.add("bad image cells", f"{source}: column '{column}': {error}")
            return None

    def add(self, row: Row, picture: Picture | None = None) -> None:
        """Add one row; its picture is read from the record unless given."""
        place, record = row
        source = f"{self.name}{place}"
        before = len(self._problems)
        picture = picture or self.picture(record, source)
        question, label = self._text("question", record, source), self._text("label", record, source)
        answers, weights = self._answers(record, source)
        captions = self._texts("captions", record, source)
        said = self._turns(record, source)
        identifier = self._id(record, place, source)
        if picture is None:
            return
        if len(self._problems) > before:
            self.rejected.append((picture, source))
            return
        key = identity(picture) if self._grouped else ""
        if key and key in self._captions:
            self._captions[key][1].extend(captions)
        elif identifier in self._ids:
            self._duplicate(identifier, source)
            self.rejected.append((picture, source))
        else:
            if key:
                self._captions[key] = (len(self.samples), list(captions))
            self._ids[identifier] = source
            self.samples.append(
                Sample(identifier, picture, question, answers, weights, captions, source, label=label, turns=said)
            )

    def finish(self) -> list[Sample]:
        """The samples, with all their captions. Says which texts were read as lists of numbers."""
        if self._numbers:
            log.warning(
                "%s is read as a list, each number a text of its own%s; where one text is meant, write the data as JSONL, whose "
                "strings are texts",
                self._first_numbers,
                f" (so are {self._numbers - 1:,} more cells)" if self._numbers > 1 else "",
            )
        for index, captions in self._captions.values():
            if len(captions) > len(self.samples[index].captions):
                self.samples[index] = replace(self.samples[index], captions=tuple(captions))
        return self.samples

    def _duplicate(self, identifier: str, source: str) -> None:
        column = self._columns.get("id")
        hint = "" if column is None or column.mapped else "; data.columns.id= takes the place in the file instead"
        self._problems.add("duplicate ids", f"{source}: id '{identifier}' is taken by {self._ids[identifier]}{hint}")

    def _id(self, record: Mapping[str, Any], place: str, source: str) -> str:
        if column := self._columns.get("id"):
            try:
                if identifier := text(record.get(column.name)):
                    return identifier
                self._problems.add("empty ids", f"{source}: empty id (column '{column.name}')")
            except CellError as error:
                self._problems.add("bad cells", f"{source}: column '{column.name}': {error}")
        return f"{self._short}{place}"

    def _text(self, field: str, record: Mapping[str, Any], source: str) -> str:
        if field not in self._columns:
            return ""
        column = self._columns[field].name
        try:
            found = text(record.get(column))
        except CellError as error:
            self._problems.add("bad cells", f"{source}: column '{column}': {error}")
            return ""
        if not found and field in self._required:
            self._problems.add(f"empty {field}s", f"{source}: empty {field} (column '{column}')")
        return found

    def _texts(self, field: str, record: Mapping[str, Any], source: str) -> tuple[str, ...]:
        if field not in self._columns:
            return ()
        column = self._columns[field].name
        try:
            found = tuple(value for value, _ in texts(self._listed(record, column, source)) if value)
        except CellError as error:
            self._problems.add("bad cells", f"{source}: column '{column}': {error}")
            return ()
        if not found and field in self._required:
            self._problems.add(f"empty {field}", f"{source}: no {field[:-1]} (column '{column}')")
        return found

    def _listed(self, record: Mapping[str, Any], column: str, source: str) -> Any:
        """A cell with texts; where the format has no lists, the list that its text may hold."""
        value = record.get(column)
        if not (self._delimited and isinstance(value, str)):
            return value
        found = parse_list(value)
        if self._labelled and bare_numbers(found):
            self._numbers += 1
            self._first_numbers = self._first_numbers or f"{source}: column '{column}': {value.strip()}"
        return found

    def _answers(self, record: Mapping[str, Any], source: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
        if "answers" not in self._columns:
            return (), ()
        column = self._columns["answers"].name
        try:
            pairs = texts(self._listed(record, column, source), key="answer")
            if "weights" in self._columns:
                column = self._columns["weights"].name
                pairs = with_weights(pairs, record.get(column))
            weights = check_weights([weight for value, weight in pairs if value])
        except CellError as error:
            self._problems.add("bad cells", f"{source}: column '{column}': {error}")
            return (), ()
        answers = tuple(value for value, _ in pairs if value)
        if not answers and "answers" in self._required:
            self._problems.add("empty answers", f"{source}: no answer (column '{self._columns['answers'].name}')")
        return answers, weights

    def _turns(self, record: Mapping[str, Any], source: str) -> tuple[Turn, ...]:
        if "conversations" not in self._columns:
            return ()
        column = self._columns["conversations"].name
        try:
            return turns(record.get(column), self._labelled)
        except CellError as error:
            self._problems.add("bad conversations", f"{source}: column '{column}': {error}")
            return ()

    def _picture(self, value: Any, source: str) -> Picture:
        if isinstance(value, Mapping) and ("bytes" in value or "path" in value):  # how the hub's libraries store images
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes | bytearray | memoryview) and len(value):
            return BytesPicture(bytes(value), source)
        if isinstance(value, str) and value.strip():
            if "://" in value:
                raise CellError(f"'{value}' is a URL, and images are read from disk: download them first")
            path = os.path.normpath(os.path.join(self.root, os.path.expanduser(value.strip())))
            return self._pictures.setdefault(path, picture_of(path))
        if hasattr(value, "getexif"):  # a PIL image
            return BytesPicture.from_image(value, source)
        if value is None or isinstance(value, str | bytes):
            raise CellError("empty image")
        raise CellError(f"expected an image's path, found {kind(value)}")


def build(
    rows: Iterable[Row],
    columns: Mapping[str, Column],
    spec: TaskSpec,
    name: str,
    root: str | Path,
    problems: Problems,
    labelled: bool = True,
    delimited: bool = False,
) -> Builder:
    """All rows of a table as samples; see `Builder` for the arguments."""
    builder = Builder(columns, spec, name, os.fspath(root), problems, labelled, delimited)
    for row in rows:
        builder.add(row)
    builder.finish()
    return builder
