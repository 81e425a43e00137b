"""From rows of a table to samples: which rows are one sample, and every way a row can be wrong.

- Question, answers and captions are as in `vlatrain.data.cells`. Empty texts among several are left out.
- A label is a text, a conversation as in `vlatrain.data.turns`, an image as in `vlatrain.data.pictures`; of a conversation it may
  also stand in a message.
- Every row is a sample, but of tasks whose description says `by_image`: there rows with the same image become one with several
  captions, in the order of the file.
- Of several images, `image` and `images` have a list, or the conversation has them; `<image>` in question or conversation marks the
  place of each, or no place is marked.
- A sample's id is the `id` column where there is one (the first row's, of several), else its place: `t.jsonl:12`, `t.json[3]`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlatrain.config.spec import TaskSpec
from vlatrain.config.wording import LETTERS, Wording
from vlatrain.data.box_turns import divider
from vlatrain.data.boxes import Box, Suspicion, in_shares, read_boxes
from vlatrain.data.cells import (
    MOST,
    CellError,
    bare_numbers,
    check_weights,
    clipped,
    parse_list,
    text,
    texts,
    with_weights,
)
from vlatrain.data.checks import Problems
from vlatrain.data.columns import Column, hint
from vlatrain.data.features import FeaturePicture
from vlatrain.data.images import NoPicture, header_of, identity, upright_size
from vlatrain.data.pictures import Pictures, SeveralImagesError, cells
from vlatrain.data.sample import IMAGE, Picture, Sample, Turn
from vlatrain.data.tables import Row
from vlatrain.data.turns import Conversation, conversation, refuse_tools

log = logging.getLogger("vlatrain")

PLAIN_WORDING = Wording()
PLAIN = 1000  # characters of a text in another column that is kept with a sample


@dataclass
class Counted:
    """A fault that is told once for all rows that have it.

    Attributes:
        number: how many rows.
        first: the first of them.
    """

    number: int = 0
    first: str = ""

    def add(self, source: str) -> None:
        """One more row."""
        self.number += 1
        self.first = self.first or source

    @property
    def more(self) -> str:
        """`, and 3 more`, or nothing."""
        return f", and {self.number - 1:,} more" if self.number > 1 else ""


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
        text_only: what becomes of conversations without an image: train, drop or refuse.
        absent: what to say where no row has an image, and there is no column of images.
        form: how boxes are written, see `vlatrain.data.boxes`.
        most: so many images a sample may have.
        wording: how questions are made; where options are chosen among, the answer must be one.
        groups: the columns by which scores are given; then samples keep all other columns that hold plain values. None: nothing
            is kept.
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
        text_only: str = "train",
        absent: str = "",
        form: str = "xyxy",
        groups: Sequence[str] | None = None,
        most: int = 1,
        wording: Wording = PLAIN_WORDING,
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
        self._pictures = Pictures(root)
        self._on_text_only, self._absent, self._form = text_only, absent, form
        self._most, self._count = (most if spec.several_images else 1), 0
        self._takes_several = spec.several_images
        self._groups = None if groups is None else tuple(groups)
        self._used = {name for column in columns.values() for name in column.reads} - {*(groups or ())}
        self.count = 0
        self._text_only, self._several, self._moved = Counted(), Counted(), Counted()
        self._long = Counted()
        self._suspicious = Suspicion(form)
        self._chooses = wording.chooses
        question, boxes = (columns[key].composed if key in columns else None for key in ("question", "boxes"))
        self._divider = None if wording.template else divider(question, boxes, name, form, problems, labelled)
        self._captions: dict[str, tuple[int, list[str]]] = {}  # image -> index of its sample, captions
        self._ids: dict[str, str] = {}
        # texts that were read as lists of bare numbers, and the first of them
        self._numbers, self._first_numbers = 0, ""

    def starts_sample(self, row: Row) -> bool:
        """Whether a row would be a new sample, not one more caption of a known image."""
        if not self._grouped:
            return True
        try:
            return _key(self._pictures.of(self._held(row[1]), "", self._most)) not in self._captions
        except (CellError, SeveralImagesError):
            return True

    def add(self, row: Row, picture: Picture | None = None) -> None:
        """Add one row, or those of its several expressions; its picture is read from the record unless given."""
        for own in self._divider.samples(row) if self._divider else (row,):
            self._add(own, picture)

    def _add(self, row: Row, picture: Picture | None) -> None:
        place, record = row
        source = f"{self.name}{place}"
        before = len(self._problems)
        self.count += 1
        said = self._conversation(record, source)
        if picture is None:
            pictures = self.pictures(record, source, said)
        elif said and said.images:
            self._add_several(source, 1 + len(said.images))
            return
        else:
            pictures = (picture,)
        picture = pictures[0] if pictures else None
        question, label = self._text("question", record, source), self._text("label", record, source)
        answers, weights = self._answers(record, source)
        captions = self._texts("captions", record, source)
        options = self._options(answers, record, source)
        mask = self._mask(record, source)
        boxes = self._boxes(record, picture, source)
        identifier = self._id(record, place, source)
        turns = self._turns(question, said, len(pictures), source) if pictures else ()
        if picture is None:
            return
        said_here = (question, label, *answers, *captions, *(one for turn in turns for one in (turn.user, turn.reply)))
        if max(map(len, said_here)) >= MOST:
            self._long.add(source)
        if len(self._problems) > before:
            self.rejected += [(one, source) for one in pictures]
            return
        if said and said.moved and len(pictures) == 1:
            self._moved.add(source)
        key = _key(pictures) if self._grouped else ""
        if key and key in self._captions:
            self._captions[key][1].extend(captions)
        elif identifier in self._ids:
            self._duplicate(identifier, source)
            self.rejected += [(one, source) for one in pictures]
        else:
            if key:
                self._captions[key] = (len(self.samples), list(captions))
            self._ids[identifier] = source
            sample = Sample(
                identifier,
                picture,
                question,
                answers,
                weights,
                captions,
                source,
                label=label,
                turns=turns,
                mask=mask,
                boxes=boxes,
                more=pictures[1:],
                options=options,
            )
            self.samples.append(sample if self._groups is None else self._described(sample, record))

    def _described(self, sample: Sample, record: Mapping[str, Any]) -> Sample:
        """A sample with what else its row holds, as far as these are plain values."""
        plain = tuple((name, value) for name, value in record.items() if name not in self._used and _is_plain(value))
        return replace(sample, extra=plain, groups=self._groups or ())

    def pictures(self, record: Mapping[str, Any], source: str, said: Conversation | None = None) -> tuple[Picture, ...]:
        """The pictures of a row, from its cells or from its conversation.

        Returns:
            The pictures; empty if the row has none, or too many, or one is none, which is reported.
        """
        names = ", ".join(f"'{self._columns[field].name}'" for field in ("image", "images") if field in self._columns)
        try:
            held = self._held(record)
            if not any(held) and said is None and "conversations" in self._columns:
                return ()  # it may have been in the conversation, which is reported
            if not any(held) and said is not None and not said.images:
                if said.marks:
                    raise CellError("the conversation shows an image, and there is none")
                self._text_only.add(source)
                return (NoPicture(source),) if self._on_text_only == "train" else ()
            return self._pictures.of([*held, said.images if said else ()], source, self._most)
        except SeveralImagesError as error:
            self._add_several(source, error.count)
        except CellError as error:
            where = f"column {names}: " if names else ""
            self._problems.add("bad image cells", f"{source}: {where}{error}")
        return ()

    def _add_several(self, source: str, count: int) -> None:
        self._count = self._count or count
        self._several.add(source)

    def _turns(self, question: str, said: Conversation | None, count: int, source: str) -> tuple[Turn, ...]:
        """The turns of a conversation about so many images: about several with the places of these, if they are marked, in each of
        which one stands; the question is looked at for the same."""
        turns = said.turns if said else ()
        placed = (said.placed if said else ()) or turns
        marks = question.count(IMAGE) + sum(turn.user.count(IMAGE) for turn in placed)
        if count == 1 or not marks:
            return turns
        if marks != count:
            marked = "1 place" if marks == 1 else f"{marks} places"
            self._problems.add(
                "places of images",
                f"{source}: {count} images, and {marked} marked by {IMAGE}: mark the place of each, or none",
            )
        return placed

    def _mask(self, record: Mapping[str, Any], source: str) -> Picture | None:
        """The mask of a row; None if the task has none, or it is missing, which is reported."""
        if "mask" not in self._columns or not self._labelled:
            return None
        column = self._columns["mask"]
        try:
            return self._pictures.one(cells(column.of(record), self._delimited), f"{source}: mask")
        except SeveralImagesError:
            self._problems.add("bad mask cells", f"{source}: column '{column.name}': several masks of one image")
        except CellError as error:
            said = "no mask" if str(error) == "empty image" else error
            self._problems.add("bad mask cells", f"{source}: column '{column.name}': {said}")
        return None

    def _held(self, record: Mapping[str, Any]) -> list[list[Any]]:
        """The images in each of the columns that may hold some."""
        columns = [self._columns[field] for field in ("image", "images") if field in self._columns]
        return [cells(column.of(record), self._delimited) for column in columns]

    def finish(self) -> list[Sample]:
        """The samples, with all their captions. Reports, and says, what concerns many rows."""
        if self._numbers:
            log.warning(
                "%s is read as a list, each number a text of its own%s; where one text is meant, write the data as JSONL, whose "
                "strings are texts",
                self._first_numbers,
                f" (so are {self._numbers - 1:,} more cells)" if self._numbers > 1 else "",
            )
        if self._long.number:
            log.warning(
                "%s: a text of over %s characters%s: cut to these before it is read",
                self._long.first,
                f"{MOST:,}",
                self._long.more,
            )
        for index, captions in self._captions.values():
            if len(captions) > len(self.samples[index].captions):
                self.samples[index] = replace(self.samples[index], captions=tuple(captions))
        self._finish_images()
        if self._divider:
            self._divider.finish()
        if said := self._suspicious.said():
            self._problems.add("forms of boxes", f"{self.name}: {said}")
        return self.samples

    def _finish_images(self) -> None:
        several, text_only, moved = self._several, self._text_only, self._moved
        if several.number:
            limit = (
                f"data.max_images={self._most} is the most of a sample: set a larger one"
                if self._takes_several
                else "this task takes one image a sample: write a row for each"
            )
            self._problems.add(
                "several images",
                f"{several.first}: {self._count} images{several.more}: {limit}, or leave such rows out",
            )
        if text_only.number and text_only.number == self.count and self._absent:
            self._problems.add("absent columns", self._absent)
        elif text_only.number == self.count and self._labelled and self.count:
            self._problems.add("conversations without images", f"{self.name}: none of the conversations has an image")
        elif text_only.number and self._on_text_only == "refuse":
            self._problems.add(
                "conversations without images",
                f"{text_only.first}: a conversation without an image{text_only.more}, and data.text_only=refuse: give it one, or "
                "set data.text_only to train or drop",
            )
        elif text_only.number:
            how = "learned as text" if self._labelled else "answered as text"
            how = "left out" if self._on_text_only == "drop" else how
            log.info(
                "%s: a conversation without an image%s: %s (data.text_only=%s)",
                text_only.first, text_only.more, how, self._on_text_only,
            )  # fmt: skip
        if moved.number:
            log.info(
                "%s: marks the image's place later, or several times%s: it is shown once, before the first message",
                moved.first,
                moved.more,
            )

    def _duplicate(self, identifier: str, source: str) -> None:
        column = self._columns.get("id")
        remedy = "" if column is None or column.mapped else "; data.columns.id= takes the place in the file instead"
        taken = self._ids[identifier]
        self._problems.add("duplicate ids", f"{source}: id '{clipped(identifier)}' is taken by {taken}{remedy}")

    def _id(self, record: Mapping[str, Any], place: str, source: str) -> str:
        if column := self._columns.get("id"):
            try:
                if identifier := text(column.of(record)):
                    return identifier
                self._problems.add("empty ids", f"{source}: empty id (column '{column.name}')")
            except CellError as error:
                self._problems.add("bad cells", f"{source}: column '{column.name}': {error}")
        return f"{self._short}{place}"

    def _text(self, field: str, record: Mapping[str, Any], source: str) -> str:
        if field not in self._columns:
            return ""
        column, value = self._columns[field], None
        try:
            value = column.of(record)
            found = text(value)
        except CellError as error:
            self._problems.add("bad cells", f"{source}: column '{column.name}': {error}{hint(field, column, value)}")
            return ""
        if not found and field in self._required:
            self._problems.add(f"empty {field}s", f"{source}: empty {field} (column '{column.name}')")
        return found

    def _texts(self, field: str, record: Mapping[str, Any], source: str) -> tuple[str, ...]:
        if field not in self._columns:
            return ()
        column, value = self._columns[field], None
        try:
            value = column.of(record)
            found = tuple(one for one, _ in texts(self._listed(value, column.name, source)) if one)
        except CellError as error:
            self._problems.add("bad cells", f"{source}: column '{column.name}': {error}{hint(field, column, value)}")
            return ()
        if not found and field in self._required:
            self._problems.add(f"empty {field}", f"{source}: no {field[:-1]} (column '{column.name}')")
        return found

    def _listed(self, value: Any, column: str, source: str) -> Any:
        """A cell with texts; where the format has no lists, the list that its text may hold."""
        if not (self._delimited and isinstance(value, str)):
            return value
        found = parse_list(value)
        if self._labelled and bare_numbers(found):
            self._numbers += 1
            self._first_numbers = self._first_numbers or f"{source}: column '{column}': {clipped(value)}"
        return found

    def _answers(self, record: Mapping[str, Any], source: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
        if "answers" not in self._columns:
            return (), ()
        column, cell = self._columns["answers"], None
        try:
            cell = column.of(record)
            value = cell if column.composed else self._listed(cell, column.name, source)
            pairs = texts(value, key="answer")
            if "weights" in self._columns:
                column, cell = self._columns["weights"], None
                pairs = with_weights(pairs, column.of(record))
            weights = check_weights([weight for answer, weight in pairs if answer])
        except CellError as error:
            self._problems.add("bad cells", f"{source}: column '{column.name}': {error}{hint('answers', column, cell)}")
            return (), ()
        answers = tuple(value for value, _ in pairs if value)
        if not answers and "answers" in self._required:
            self._problems.add("empty answers", f"{source}: no answer (column '{self._columns['answers'].name}')")
        return answers, weights

    def _options(self, answers: Sequence[str], record: Mapping[str, Any], source: str) -> tuple[str, ...]:
        """The options of a row; none if the task has none, or they are bad, which is reported."""
        if "options" not in self._columns:
            return ()
        column = self._columns["options"]
        try:
            found = tuple(option for option in column.of(record) if option)
            if self._chooses and len(found) < 2:
                raise CellError(f"{len(found)} options, and there is something to choose among two or more")
            if self._chooses and len({*found}) < len(found):
                raise CellError("an option is there twice")
            if self._chooses and len(found) > len(LETTERS):
                raise CellError(f"{len(found)} options, and there are letters for {len(LETTERS)}")
            if self._chooses and self._labelled and answers and not {*answers} & {*found}:
                raise CellError(f"the answer {clipped(repr(answers[0]))} is none of the options")
            return found
        except CellError as error:
            self._problems.add("bad options", f"{source}: column '{column.name}': {error}")
            return ()

    def _boxes(self, record: Mapping[str, Any], picture: Picture | None, source: str) -> tuple[Box, ...]:
        """The boxes of a row in shares of its image; none where the image cannot be read, which is reported elsewhere."""
        if "boxes" not in self._columns:
            return ()
        column = self._columns["boxes"].name
        try:
            if column not in record and "boxes" in self._required and not self._divider:
                raise CellError("no box; a row in whose image nothing is to be found has an empty list")
            read = read_boxes(self._columns["boxes"].of(record), self._form)
            if isinstance(picture, FeaturePicture):
                raise CellError("boxes are found in images, and this is a file of features")
            if picture is None or (header := header_of(picture)) is None:
                return ()
            self._suspicious.look(read, upright_size(picture), source)
            return in_shares(read, upright_size(picture), header.orientation)
        except CellError as error:
            self._problems.add("bad boxes", f"{source}: column '{column}': {error}")
            return ()

    def _conversation(self, record: Mapping[str, Any], source: str) -> Conversation | None:
        """The conversation of a row; None if the task has none, or it is bad, which is reported."""
        if "conversations" not in self._columns:
            return None
        column = self._columns["conversations"].name
        try:
            value = self._columns["conversations"].of(record)
            if "tools" in self._columns:
                column = "tools"
                refuse_tools(record.get(column))
            column = "system"
            system = text(record.get(column)) if column in self._columns else ""
            column = self._columns["conversations"].name
            return conversation(value, self._labelled, system)
        except CellError as error:
            self._problems.add("bad conversations", f"{source}: column '{column}': {error}")
            return None


def _key(pictures: Sequence[Picture]) -> str:
    """What tells pictures, in this order, from others."""
    return "\0".join(map(identity, pictures))


def _is_plain(value: Any) -> bool:
    """Whether a cell is a number, a truth value, or a text that is no document."""
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= PLAIN)


def build(builder: Builder, rows: Iterable[Row]) -> Builder:
    """All rows of a table as samples."""
    for row in rows:
        builder.add(row)
    builder.finish()
    return builder
