"""Which column of the user's data holds which field of a task. What is missing is told with what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlatrain.config.data import ColumnsConfig
from vlatrain.config.spec import TaskSpec
from vlatrain.config.wording import OPTIONS, QUESTION, Wording
from vlatrain.data.box_turns import listed_expressions, spoken
from vlatrain.data.cells import CellError, clipped, listed, text, value_at
from vlatrain.data.checks import Problems
from vlatrain.data.composed import OPTIONS as LISTED
from vlatrain.data.composed import AmbiguousError, Composed, choices, dialogue, listing_of
from vlatrain.data.finder import ID_COLUMNS

DEFAULTS = {
    "id": ("id",),
    "image": ("image", "images"),
    "question": ("question",),
    "answers": ("answer", "answers"),
    "weights": ("weights",),
    "captions": ("caption", "captions"),
    "label": ("label",),
    "mask": ("mask",),
    "boxes": ("box", "boxes", "bbox"),
    "conversations": ("conversations", "messages"),
}
# Names seen in public data sets, for "did you mean"; they are never taken without being asked for.
USUAL = {
    "image": ("img", "image_path", "img_path", "file_name", "filename", "file", "path", "picture", "photo"),
    "question": ("questions", "query", "prompt", "text"),
    "answers": ("label", "labels", "multiple_choice_answer", "target", "response"),
    "captions": ("text", "texts", "sentence", "sentences", "description", "title", "alt"),
    "label": ("labels", "class", "class_name", "category", "target", "answer"),
    "mask": ("masks", "segmentation", "segmentation_mask", "mask_path", "annotation", "gt", "seg_map", "label"),
    "boxes": ("bboxes", "bounding_box", "bounding_boxes", "box_2d", "bbox_2d", "region"),
    "conversations": ("conversation", "chat", "dialogue", "dialog", "turns", "texts"),
}
PLAIN = Wording()
BESIDE = ("system", "tools")  # columns that belong to a conversation, where there are such
TEXT_KEYS = ("raw", "text", "caption", "sentence", "answer", "value", "label", "name")  # of objects, most likely first
# Names of columns that hold no paths.
NO_PATH = re.compile(r"(?:^|[_a-z])(?:id|ids|Id|ID)$|(?:^|_)(?:width|height|size|url)$")


@dataclass(frozen=True)
class Column:
    """Where a field stands in a row.

    Attributes:
        name: the column, as messages call it: with the keys below it, `sentences.raw`.
        mapped: whether the user named it.
        path: the keys below the column; none: the cell itself.
        composed: how it is made of several columns; None: it is not.
    """

    name: str
    mapped: bool
    path: tuple[str, ...] = ()
    composed: Composed | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the data that it takes."""
        if self.composed:
            return self.composed.reads
        return (self.name.removesuffix("".join(f".{key}" for key in self.path)),)

    def of(self, record: Mapping[str, Any]) -> Any:
        """What a row has in the field. Raises `CellError`."""
        if self.composed:
            return self.composed.make(record)
        value = record.get(self.reads[0]) if self.path else record.get(self.name)
        return value_at(value, self.path) if self.path else value


def check_groups(columns: Sequence[str], groups: Sequence[str], name: str, problems: Problems) -> None:
    """Report columns of `data.groups` that are not there; see `find_columns` for the arguments."""
    for group in groups:
        if group not in columns:
            close = difflib.get_close_matches(group, columns, n=1, cutoff=0.6)
            guess = f"; did you mean {close[0]}?" if close else ""
            there = ", ".join(columns) or "none"
            problems.add("absent columns", f"{name}: no column '{group}' (data.groups); the columns are {there}{guess}")


def find_columns(
    columns: Sequence[str],
    wanted: ColumnsConfig,
    spec: TaskSpec,
    name: str,
    problems: Problems,
    labelled: bool = True,
    records: Sequence[Mapping[str, Any]] = (),
    wording: Wording = PLAIN,
) -> dict[str, Column] | None:
    """Match the fields a task needs with the columns there are.

    Args:
        columns: the columns of the data.
        wanted: the user's column map.
        spec: the task's description.
        name: what to call the data in messages.
        problems: where to report absent columns.
        labelled: whether the references (answers, captions, ...) must be there; without, only what is asked of the model must.
        records: some rows, from which to see what columns hold.
        wording: how questions are made.

    Returns:
        Field -> column, or None if one that must be there is not. Of tasks with conversations the image may be in these.
    """
    speaks = "conversations" in spec.fields
    several = several_expressions(columns, wanted, spec, labelled)
    required = (
        *(() if speaks or (several and "image" in several) else ("image",)),
        *(field for field in (spec.fields if labelled else spec.given) if field != "question" or wording.asks),
    )
    found: dict[str, Column] = {}
    absent = []
    for field in dict.fromkeys(("image", *required, "id", *spec.fields, *spec.optional)):
        if field == OPTIONS:
            continue
        mapped: str | None = getattr(wanted, field)
        if field == "id" and mapped == "":
            continue
        names = (mapped,) if mapped is not None else DEFAULTS[field]
        if mapped is None and field == "question" and "boxes" in spec.fields:
            names = (*names, "expression")
        column = next((made for candidate in names if (made := _column(candidate, mapped is not None, columns))), None)
        if several and field in several and (field != "image" or column is None):
            column = Column(several[field].reads[0], False, composed=several[field])
        try:
            column = _composed(field, column, columns, labelled, records, wanted, wording) or column
        except AmbiguousError as error:
            problems.add("columns", f"{name}: {error}")
            absent.append(field)
            continue
        if column is not None and (said := _objects(field, column, records)):
            absent.append(field)
            problems.add("columns", f"{name}: {said}")
        elif column is not None:
            found[field] = column
        elif field in required or (mapped is not None and labelled):  # a run's map may name columns only training has
            absent.append(field)
            problems.add("absent columns", absent_column(field, wanted, columns, name, records))
    if speaks:
        found |= {beside: Column(beside, False) for beside in BESIDE if beside in columns}
    if OPTIONS in spec.optional and (options := listing_of(columns, wanted.options)):
        found[OPTIONS] = Column(options.reads[0], wanted.options is not None, composed=options)
    if wording.chooses or wording.template:
        absent += _word(found, wanted, columns, name, problems, wording)
    if wanted.image is None and {"image", "images"} <= set(columns):  # a mix of sets has either
        found["images"] = Column("images", False)
    return None if absent else found


def _word(
    matched: dict[str, Column],
    wanted: ColumnsConfig,
    columns: Sequence[str],
    name: str,
    problems: Problems,
    wording: Wording,
) -> list[str]:
    """Add the column of options, and compose the question of those that its template names; which fields are absent."""
    options = listing_of(columns, wanted.options)
    if (wording.chooses or wording.lists) and options is None:
        names = "', '".join([wanted.options] if wanted.options else LISTED)
        why = f"task.answers={wording.answers}" if wording.chooses else "task.prompt"
        problems.add(
            "absent columns",
            f"{name}: no column '{names}' of options ({why}); the columns are {listed(columns)}; set "
            "data.columns.options=COLUMN",
        )
        return [OPTIONS]
    if options is not None and (wording.chooses or wording.lists):
        matched[OPTIONS] = Column(options.reads[0], wanted.options is not None, composed=options)
    held = {one: matched.get(one) or _column(one, True, columns) for one in wording.columns}
    if absent := [one for one, column in held.items() if column is None]:
        for one in absent:
            close = difflib.get_close_matches(one, [QUESTION, OPTIONS, *columns], n=1, cutoff=0.6)
            guess = f"; did you mean {{{close[0]}}}?" if close else ""
            problems.add(
                "absent columns", f"{name}: no column '{one}' (task.prompt); the columns are {listed(columns)}{guess}"
            )
        return absent
    if wording.template:
        known = {one: column for one, column in held.items() if column is not None}
        reads = tuple(dict.fromkeys(column for one in known.values() for column in one.reads))

        def make(record: Mapping[str, Any]) -> str:
            def said(one: str, value: Any) -> str:
                return wording.listed([own for own in value if own]) if one == OPTIONS else text(value)

            return wording.filled({one: said(one, column.of(record)) for one, column in known.items()})

        matched[QUESTION] = Column(reads[0], False, composed=Composed("", reads, make))
    return []


def several_expressions(
    columns: Sequence[str], wanted: ColumnsConfig, spec: TaskSpec, labelled: bool
) -> Mapping[str, Composed] | None:
    """How expressions, boxes and the image come out of rows that have several; None: they have columns of their own. See
    `find_columns` for the arguments."""
    if "boxes" not in spec.fields or wanted.question or {*DEFAULTS["question"], "expression"} & set(columns):
        return None
    boxed = wanted.boxes or {*DEFAULTS["boxes"]} & set(columns)
    return listed_expressions(columns) if boxed else spoken(columns, labelled)


def _column(name: str | None, mapped: bool, columns: Sequence[str]) -> Column | None:
    """The column of a name, or of its beginning, with the keys below it."""
    if not name:
        return None
    if name in columns:
        return Column(name, mapped)
    keys = name.split(".")
    cuts = (cut for cut in range(len(keys) - 1, 0, -1) if ".".join(keys[:cut]) in columns)
    return next((Column(name, mapped, tuple(keys[cut:])) for cut in cuts), None)


def _composed(
    field: str,
    column: Column | None,
    columns: Sequence[str],
    labelled: bool,
    records: Sequence[Mapping[str, Any]],
    wanted: ColumnsConfig,
    wording: Wording,
) -> Column | None:
    composed = None
    if field == "conversations" and column is None:
        composed = dialogue(columns, labelled)
    elif field == "answers" and labelled and (column is None or not column.path):
        name, mapped = column.name if column else None, bool(column and column.mapped)
        composed = choices(columns, name, mapped, records, wanted.options, wording.lists)
    return Column(composed.reads[0], bool(column and column.mapped), composed=composed) if composed else None


def _objects(field: str, column: Column, records: Sequence[Mapping[str, Any]]) -> str:
    """That a column of texts holds objects in all rows, and the key that would do; empty if it does not."""
    if field not in ("question", "label", "captions", "answers") or column.path or column.composed or not records:
        return ""
    values = [record.get(column.name) for record in records]
    if not all(text_key(value) for value in values) or (field == "answers" and _holds(values[0], "answer")):
        return ""
    return f"column '{column.name}': expected texts, found objects{hint(field, column, values[0])}"


def _holds(value: Any, key: str) -> bool:
    one = next(iter(value), None) if isinstance(value, list | tuple) else value
    return isinstance(one, Mapping) and key in one


def absent_column(
    field: str,
    wanted: ColumnsConfig,
    columns: Sequence[str],
    name: str,
    records: Sequence[Mapping[str, Any]] = (),
) -> str:
    """That there is no column for a field, which columns there are, and which was probably meant."""
    mapped: str | None = getattr(wanted, field)
    names = (mapped,) if mapped is not None else DEFAULTS[field]
    what = " or ".join(f"'{column}'" for column in names)
    start = f"{name}: no column {what}" + (f" (data.columns.{field}={mapped})" if mapped is not None else "")
    guess = _guess(field, names, columns, records)
    remedy = f"did you mean data.columns.{field}={guess}?" if guess else f"set data.columns.{field}=COLUMN"
    identifier = next((column for column in ID_COLUMNS if column in columns), None)
    if field == "image" and not guess and identifier:
        remedy = f"no image is called after '{identifier}': set data.root to their folder, or add a column of paths"
    return f"{start}; the columns are {listed(columns) or 'none'}; {remedy}"


def _guess(
    field: str, names: Sequence[str], columns: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> str | None:
    """The column most likely meant: by spelling, else by what such a column is usually called; of objects, one of their texts."""
    plain = {column.lower().replace("-", "_").strip(): column for column in reversed(columns)}
    close = [
        plain[match]
        for name in (*names, *DEFAULTS[field])
        for match in difflib.get_close_matches(name.lower(), plain, n=3, cutoff=0.75)
    ]
    close += [plain[usual] for usual in USUAL.get(field, ()) if usual in plain]
    record = next(iter(records), None)
    fitting = (fit for column in close if (fit := _fitting(field, column, record)))
    return next(fitting, None)


def _fitting(field: str, column: str, record: Mapping[str, Any] | None) -> str | None:
    """A column, or a key below it, if a field can be of what it holds."""
    value = (record or {}).get(column)
    if field in ("image", "mask"):
        holds = not NO_PATH.search(column) and not isinstance(value, int | float) and "://" not in str(value)[:12]
        return column if holds else None
    if value is None or field in ("id", "conversations", "weights", "boxes"):
        return column
    if key := text_key(value):
        return f"{column}.{key}" if field in ("captions", "answers") or not isinstance(value, list) else None
    several = isinstance(value, list | tuple) and field in ("captions", "answers")
    try:
        text(next(iter(value), None) if several else value)
    except CellError:
        return None
    return column


def text_key(value: Any) -> str:
    """The key of the text in an object, or in the objects of a list; empty if there is none."""
    if isinstance(value, list | tuple):
        value = next(iter(value), None)
    if not isinstance(value, Mapping):
        return ""
    firsts = {key: next(iter(inner), None) if isinstance(inner, list) else None for key, inner in value.items()}
    held = [key for key, inner in value.items() if isinstance(inner, str)]
    held = held or [key for key, inner in firsts.items() if isinstance(inner, str)]
    return next((key for key in TEXT_KEYS if key in held), held[0] if held else "")


def said_of(columns: Mapping[str, Column]) -> list[str]:
    """What is to be told of fields that are made of several columns."""
    return [
        *dict.fromkeys(column.composed.said for column in columns.values() if column.composed and column.composed.said)
    ]


def hint(field: str, column: Column, value: Any) -> str:
    """For a cell with objects where texts are expected: the key that would do."""
    key = "" if column.composed else text_key(value)
    return f"; data.columns.{field}={clipped(column.name)}.{key} takes the '{key}' in it" if key else ""
