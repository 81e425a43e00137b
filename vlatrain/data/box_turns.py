"""Rows of several expressions, each of which becomes a sample: those of one box, as RefCOCO has them, and conversations that say
where something is.

Expressions of one box stand in a list, as texts or as objects: REFER's `sentences` with `raw` and `sent` (Kazemzadeh et al., EMNLP
2014), or `expressions`. In a conversation, from which models that talk learn, a reply marks its boxes in one of these ways:

- `<ref>a dog</ref><box>(221,423),(569,886)</box>`: Qwen-VL (its README, "Grounding"); Qwen2-VL has `<|object_ref_start|>`,
  `<|object_ref_end|>`, `<|box_start|>` and `<|box_end|>`; InternVL `<box>[[221, 423, 569, 886]]</box>` ("Chat Data Format" of its
  documentation). All are in thousandths;
- `<ref-object><bbox>`: ms-swift ("Custom Dataset", section "Grounding"); names and boxes stand in a column `objects`, under `ref`
  and `bbox`, in the order of the marks in the whole conversation, in pixels, or in shares if its `bbox_type` is `norm1`;
- `{"bbox_2d": [135, 114, 1016, 672], "label": "house"}`: Qwen2.5-VL (pixels) and Qwen3-VL (thousandths), see the cookbook
  "spatial understanding" and the README of `qwen-vl-finetune` in their repository. Which of both, `data.boxes` says;
- `[0.12, 0.34, 0.56, 0.78]`: LLaVA (Liu et al., arXiv:2310.03744) and Shikra (Chen et al., arXiv:2306.15195), in shares. LLaVA's
  own are those of the image padded to a square (issue 606 of its repository, by a reader's count): `data.boxes=xyxy_padded`.

A box is of the name in front of it, or of its label; where there is none, or a single one and the user's words say more, it is of
what the user asks for: the one name that is marked there, what LLaVA's and Qwen's prompts ask for, else all of the message.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlatrain.data.boxes import Boxes
from vlatrain.data.cells import CellError, clipped, parse_list, text
from vlatrain.data.checks import Problems
from vlatrain.data.composed import Composed, dialogue
from vlatrain.data.tables import Row
from vlatrain.data.turns import SPEAKERS, Conversation, conversation

log = logging.getLogger("vlatrain")

COLUMNS = ("conversations", "messages")
LISTS, KEYS = (
    ("sentences", "expressions"),
    ("raw", "sent", "text"),
)  # columns of several expressions, and of one in an object
OBJECTS = "objects"
SAID = "(said)"  # the key of a row under which the expression and its boxes stand
NUMBER = r"-?\d+(?:\.\d+)?"
MARKS = re.compile(
    r"(?P<named><ref-object>)|(?P<boxed><bbox>)"
    r"|(?:<ref>|<\|object_ref_start\|>)(?P<name>.*?)(?:</ref>|<\|object_ref_end\|>)"
    r"|(?:<box>|<\|box_start\|>)(?P<tagged>.*?)(?:</box>|<\|box_end\|>)"
    r"|(?P<object>\{[^{}]*bbox_2d[^{}]*\})"
    rf"|(?P<bare>\[\s*{NUMBER}(?:\s*,\s*{NUMBER}){{3}}\s*\])",
    re.DOTALL,
)
ASKED = (
    re.compile(r"this sentence describes:?\s*(.+?)\s*$", re.DOTALL),
    re.compile(
        r"^\s*(?:locate|find|detect)\s+(.+?)[,.]?(?:\s+in (?:this|the) image)?[,.]?\s+(?:and\s+)?(?:output|report)\b.*json",
        re.DOTALL | re.IGNORECASE,
    ),
)
"""What the prompts of LLaVA's data and of Qwen's cookbooks ask for."""


@dataclass(frozen=True)
class Said:
    """What a turn says.

    Attributes:
        question: the expression.
        boxes: where that is; None: what is asked has no reply yet.
        images: what the conversation's messages hold of images.
    """

    question: str
    boxes: Boxes | None
    images: Sequence[Any] = ()


@dataclass
class Objects:
    """The names and boxes of ms-swift's marks, taken in order.

    Attributes:
        names: of `<ref-object>`.
        boxes: of `<bbox>`.
        form: how these are written.
    """

    names: list[Any] = field(default_factory=list)
    boxes: list[Any] = field(default_factory=list)
    form: str = "xyxy"

    @classmethod
    def of(cls, value: Any) -> Objects:
        """Those of a cell. Raises `CellError`."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise CellError(f"expected an object with 'ref' and 'bbox', found {clipped(value)}") from None
        if value is None:
            return cls()
        if not isinstance(value, Mapping):
            raise CellError(f"expected an object with 'ref' and 'bbox', found {clipped(value)}")
        forms = {None: "xyxy", "real": "xyxy", "norm1": "xyxy_normalised"}
        if (written := value.get("bbox_type")) not in forms:
            raise CellError(f"bbox_type is {clipped(written)}; it must be real (pixels) or norm1 (shares)")
        return cls([*(value.get("ref") or ())], [*(value.get("bbox") or ())], forms[written])

    def next_name(self) -> str:
        """The name that the next mark stands for. Raises `CellError`."""
        if not self.names:
            raise CellError("more <ref-object> than names under 'ref'")
        return str(self.names.pop(0))

    def next_box(self) -> Any:
        """The box that the next mark stands for. Raises `CellError`."""
        if not self.boxes:
            raise CellError("more <bbox> than boxes under 'bbox'")
        return self.boxes.pop(0)


def spoken(columns: Sequence[str], labelled: bool) -> dict[str, Composed] | None:
    """Images, expressions and boxes as the conversations of data have them; None: there are no conversations.

    Args:
        columns: the columns of the data.
        labelled: whether there must be replies.
    """
    column = next((name for name in COLUMNS if name in columns), None)
    made = None if column else dialogue(columns, labelled)
    if column is None and made is None:
        return None
    reads = (column,) if column else made.reads if made else ()
    reads = (*reads, *(name for name in (OBJECTS,) if name in columns))
    told = f"expressions and boxes are those in '{reads[0]}'"
    return {
        "image": Composed("", reads, lambda record: list(record[SAID].images)),
        "question": Composed(told, reads, lambda record: record[SAID].question),
        "boxes": Composed(told, reads, lambda record: record[SAID].boxes),
    }


def listed_expressions(columns: Sequence[str]) -> dict[str, Composed] | None:
    """The expressions of a box as data has several in a row; None: it has not."""
    column = next((name for name in LISTS if name in columns), None)
    if column is None:
        return None
    told = f"each expression in '{column}' is a sample"
    return {"question": Composed(told, (column,), lambda record: record[SAID].question)}


class Sentences:
    """Makes a row of each expression in a list.

    Args:
        column: where the list stands.
        name: what to call the data in messages.
        problems: where to report.
    """

    def __init__(self, column: str, name: str, problems: Problems) -> None:
        self.column, self.name, self.problems = column, name, problems

    def samples(self, row: Row) -> Iterator[Row]:
        """A row for each expression; what is none is reported."""
        place, record = row
        try:
            value = record.get(self.column)
            value = parse_list(value) if isinstance(value, str) else value
            if not isinstance(value, list | tuple) or not value:
                raise CellError(f"expected a list of expressions, found {clipped(value)}")
            told = [Said(text(_said_in(one)), None) for one in value]
        except CellError as error:
            self.problems.add("bad cells", f"{self.name}{place}: column '{self.column}': {error}")
            return
        yield from _numbered(place, record, told)

    def finish(self) -> None:
        """Nothing concerns many rows."""


def _said_in(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    key = next((key for key in KEYS if key in value), None)
    if key is None:
        raise CellError(f"an expression needs one of {', '.join(KEYS)}, found {clipped(list(value))}")
    return value[key]


def _numbered(place: str, record: Mapping[str, Any], samples: Sequence[Said]) -> Iterator[Row]:
    """A row for each of several samples of a row; the place and the id of all but the first are numbered."""
    for number, said in enumerate(samples, start=1):
        own = {} if number == 1 or "id" not in record else {"id": f"{record['id']}/{number}"}
        yield (place if number == 1 else f"{place}/{number}"), {**record, **own, SAID: said}


def divider(
    question: Composed | None, boxes: Composed | None, name: str, form: str, problems: Problems, labelled: bool
) -> Turns | Sentences | None:
    """What makes rows of several expressions into one of each, by how both fields are composed; None: each row has one."""
    if boxes:
        return Turns(boxes.reads, name, form, problems, labelled)
    return Sentences(question.reads[0], name, problems) if question else None


class Turns:
    """Makes a row of each expression in a conversation.

    Args:
        columns: the columns of the data.
        name: what to call the data in messages.
        form: what `data.boxes` says.
        problems: where to report.
        labelled: whether there must be replies.
    """

    def __init__(self, columns: Sequence[str], name: str, form: str, problems: Problems, labelled: bool) -> None:
        self.column = next((one for one in COLUMNS if one in columns), "")
        self.dialogue = None if self.column else dialogue(columns, labelled)
        self.name, self.form, self.problems, self.labelled = name, form, problems, labelled
        self.conversations = self.made = self.silent = 0
        self.first = ""
        self.shares = ""

    def samples(self, row: Row) -> Iterator[Row]:
        """A row for each expression; what is wrong with the conversation is reported."""
        place, record = row
        self.conversations += 1
        try:
            value = self.dialogue.make(record) if self.dialogue else record.get(self.column)
            told = list(self._of(_without_system(value), Objects.of(record.get(OBJECTS)), place))
        except CellError as error:
            named = self.column or (self.dialogue.reads[0] if self.dialogue else "")
            self.problems.add("bad conversations", f"{self.name}{place}: column '{named}': {error}")
            return
        self.made += len(told)
        yield from _numbered(place, record, told)

    def finish(self) -> None:
        """Report, and say, what concerns many rows."""
        if self.labelled and self.conversations and not self.made and not len(self.problems):
            self.problems.add(
                "conversations without boxes",
                f"{self.name}: no reply says where something is; <box>, <|box_start|>, <bbox> with 'objects', bbox_2d and "
                "[left, top, right, bottom] are looked for",
            )
        elif self.silent:
            log.info(
                "%s%s: a turn without boxes in its reply, or with some in the question%s: left out, nothing is asked for there",
                self.name, self.first, f", and {self.silent - 1:,} more" if self.silent > 1 else "",
            )  # fmt: skip
        if self.shares:
            log.info(
                "%s%s: boxes in shares, read as data.boxes=%s: of %s",
                self.name, self.shares, self._in_shares,
                "the image padded to a square" if self._in_shares == "xyxy_padded"
                else "the image itself; LLaVA's own data has them of the image padded to a square, data.boxes=xyxy_padded",
            )  # fmt: skip

    def _of(self, value: Any, objects: Objects, place: str) -> Iterator[Said]:
        talk: Conversation = conversation(value, self.labelled, placeholders=True)
        for turn in talk.turns:
            names, asked_of, _, plain = self._marks(turn.user, objects, place)
            question, sure = (names[0], True) if len(names) == 1 else _asked(plain)
            if not self.labelled and not turn.reply:
                yield Said(question, None, talk.images)
                continue
            _, _, found, _ = self._marks(turn.reply, objects, place)
            if asked_of or not found:
                self.silent += 1
                self.first = self.first or place
                continue
            if len(found) == 1 and (sure or "" in found):
                found = _by_name(next(iter(found.values())), names if len(names) > 1 else [question], question)
            for name, boxes in found.items():
                yield Said(name or question, boxes, talk.images)

    def _marks(self, words: str, objects: Objects, place: str) -> tuple[list[str], int, dict[str, Boxes], str]:
        """The names that words mark, how many boxes or points they have, their boxes by the name in front of each, and the words
        without marks."""
        names: list[str] = []
        plain, end = "", 0
        found: dict[str, Boxes] = {}
        count = 0
        for mark in MARKS.finditer(words):
            name, boxes = names[-1] if names else "", None
            plain, end, before_it = plain + words[end : mark.start()], mark.end(), len(names)
            if mark["named"]:
                names.append(objects.next_name().strip())
            elif mark["name"] is not None:
                names.append(mark["name"].strip())
            elif mark["boxed"]:
                boxes = Boxes([objects.next_box()], objects.form)
            elif mark["tagged"] is not None:
                numbers = [float(number) for number in re.findall(NUMBER, mark["tagged"])]
                boxes = Boxes([numbers[k : k + 4] for k in range(0, len(numbers), 4)], "xyxy_1000")
            elif mark["object"]:
                name, value = _labelled(mark["object"])
                boxes = Boxes([value], self.form, known=False)
            else:
                boxes = self._bare(json.loads(mark["bare"]), place)
            plain += "".join(names[before_it:])
            if boxes is not None:
                count += 1
                if all(isinstance(box, list | tuple) and len(box) == 2 for box in boxes.values):  # a point
                    continue
                before = found.get(name, replace(boxes, values=[]))
                found[name] = replace(boxes, values=[*before.values, *boxes.values])
        return names, count, found, plain + words[end:]

    def _bare(self, numbers: Sequence[float], place: str) -> Boxes:
        if max(numbers) > 1:
            return Boxes([numbers], self.form, known=False)
        self.shares = self.shares or place
        return Boxes([numbers], self._in_shares)

    @property
    def _in_shares(self) -> str:
        return self.form if self.form.endswith(("_normalised", "_padded")) else "xyxy_normalised"


def _by_name(boxes: Boxes, names: Sequence[str], question: str) -> dict[str, Boxes]:
    """Boxes that no name stands before: of the names that are asked for, in their order, where there are as many."""
    if len(names) != len(boxes.values) or len({*names}) < len(names):
        return {question: boxes}
    return {name: replace(boxes, values=[value]) for name, value in zip(names, boxes.values, strict=True)}


def _without_system(value: Any) -> Any:
    """Messages without what the system says."""
    value = parse_list(value) if isinstance(value, str) else value
    if not isinstance(value, list | tuple):
        return value
    speaks = [one.get("from", one.get("role")) if isinstance(one, Mapping) else None for one in value]
    return [one for one, speaker in zip(value, speaks, strict=True) if SPEAKERS.get(str(speaker)) != "system"]


def _asked(message: str) -> tuple[str, bool]:
    """What a message asks for, and whether it is known which of its words do; else it is all of them."""
    known = next((found[1] for pattern in ASKED if (found := pattern.search(message))), None)
    return (known or message).strip(), known is not None


def _labelled(written: str) -> tuple[str, Any]:
    """The label and the box of an object in a reply. Raises `CellError`."""
    try:
        value = json.loads(written)
    except ValueError:
        raise CellError(f"an object with bbox_2d that is no JSON: {clipped(written)}") from None
    return str(value.get("label") or "").strip(), value.get("bbox_2d")
