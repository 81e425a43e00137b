"""Fields that stand in several columns: an answer that chooses one of a row's options, and a conversation whose messages have
columns of their own. What is found is told; a new form is one function and a line in `choices` or `DIALOGUES`."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlatrain.data.cells import CellError, clipped, parse_list, text, texts

OPTIONS = ("options", "choices", "multiple_choices")  # columns of MMMU, ScienceQA and A-OKVQA, VQA v1
# Where there is no column `answer`.
CHOSEN = ("correct_choice_idx", "correct_answer", "answer_idx", "answer_index", "label")
LETTER = re.compile(r"\(?([A-Z])[).:]?")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Composed:
    """A field that is made of several columns.

    Attributes:
        said: what a message says of it.
        reads: the columns.
        make: what a row has in the field. Raises `CellError`.
    """

    said: str
    reads: tuple[str, ...]
    make: Callable[[Record], Any]


class AmbiguousError(Exception):
    """What may be read in two ways, and what to set."""


def choices(
    columns: Sequence[str],
    answer: str | None,
    mapped: bool,
    records: Sequence[Record],
    named: str | None = None,
    lists: bool = False,
) -> Composed | None:
    """The answer of multiple choice, as the text of the option that it chooses.

    Args:
        columns: the columns of the data.
        answer: the column of the answer, if there is one.
        mapped: whether the user named it.
        records: rows from which to see what the answers are: texts, letters, or numbers counted from 0 or 1.
        named: the column of the options that the user has named.
        lists: whether the question lists them.

    Returns:
        The field; None if there are no options, or the answers are texts.

    Raises:
        AmbiguousError: the answers may be texts as well as numbers or letters.
    """
    if (listing := listing_of(columns, named)) is None:
        return None
    answer = answer or next((column for column in CHOSEN if column in columns), None)
    if answer is None:
        return None

    options: Callable[[Record], list[str]] = listing.make
    ways = _ways([(options(record), record.get(answer)) for record in records if record.get(answer) is not None])
    shown = listing.said
    if not ways or ways == ["text"] or (mapped and "text" in ways):
        return None
    if "text" in ways:
        raise AmbiguousError(
            f"column '{answer}' may hold the texts of the options in {shown} or their {ways[-1]}: "
            f"data.columns.answers={answer} takes it as texts; otherwise write the options' texts"
        )
    way = ways[0]

    def make(record: Record) -> str:
        return _chosen(options(record), record.get(answer), way)

    said = f"answers are the options in {shown} that '{answer}' chooses by {way}"
    return Composed(said if lists else f"{said}; the question does not list them", (answer, *listing.reads), make)


def listing_of(columns: Sequence[str], named: str | None = None) -> Composed | None:
    """The options of a question: a column of lists, or a column for each; `said` names them.

    Args:
        columns: the columns of the data.
        named: the column that the user has named.
    """
    listed = next((column for column in ((named,) if named else OPTIONS) if column in columns), None)
    letters = tuple(letter for letter in string.ascii_uppercase if letter in columns)
    if listed is None and (named or len(letters) < 2):
        return None

    def make(record: Record) -> list[str]:
        value = record.get(listed) if listed else [record.get(letter) for letter in letters]
        value = parse_list(value) if isinstance(value, str) else value
        return [option for option, _ in texts(value, key="text")] if value is not None else []

    return Composed(
        f"'{listed}'" if listed else f"'{letters[0]}' to '{letters[-1]}'", (listed,) if listed else letters, make
    )


def _ways(pairs: Sequence[tuple[list[str], Any]]) -> list[str]:
    """The ways in which all answers can be read."""
    if not pairs or any(isinstance(answer, list | tuple | Mapping) for _, answer in pairs):
        return []
    counts = [(len(options), number) for options, answer in pairs if (number := _number(answer)) is not None]
    ways = []
    if all(text(answer) in options for options, answer in pairs):
        ways.append("text")
    if len(counts) == len(pairs):
        if all(0 <= number < count for count, number in counts):
            ways.append("numbers from 0")
        elif all(1 <= number <= count for count, number in counts):
            ways.append("numbers from 1")
    if all((place := _place(answer)) is not None and place < len(options) for options, answer in pairs):
        ways.append("letters")
    return ways


def _number(answer: Any) -> int | None:
    if isinstance(answer, bool):
        return None
    if isinstance(answer, int):
        return answer
    if isinstance(answer, float) and answer.is_integer():
        return int(answer)
    return int(answer) if isinstance(answer, str) and answer.strip().isdecimal() else None


def _place(answer: Any) -> int | None:
    """The place of the option that a letter names."""
    letter = LETTER.fullmatch(answer.strip()) if isinstance(answer, str) else None
    return string.ascii_uppercase.index(letter[1]) if letter else None


def _chosen(options: list[str], answer: Any, way: str) -> str:
    if answer is None or answer == "":
        return ""
    number = _place(answer) if way == "letters" else _number(answer)
    if number is not None:
        number -= way == "numbers from 1"
        if 0 <= number < len(options):
            return options[number]
    raise CellError(f"{clipped(answer)} is none of the {len(options)} options, which the other rows choose by {way}")


@dataclass(frozen=True)
class Dialogue:
    """A form in which the messages of a conversation have columns of their own.

    Attributes:
        name: what it is called in messages.
        asked: the column of what the user says.
        replied: the column of the reply.
    """

    name: str
    asked: str
    replied: str


DIALOGUES = (
    Dialogue("ms-swift's query and response", "query", "response"),
    Dialogue("TRL's prompt and completion", "prompt", "completion"),
    Dialogue("Alpaca's instruction and output", "instruction", "output"),
)


def dialogue(columns: Sequence[str], labelled: bool) -> Composed | None:
    """A conversation whose messages have columns of their own.

    Args:
        columns: the columns of the data.
        labelled: whether the reply must be there.

    Raises:
        AmbiguousError: there are the columns of several forms.
    """
    forms = [form for form in DIALOGUES if form.asked in columns and (form.replied in columns or not labelled)]
    if len(forms) > 1:
        names = " and as ".join(form.name for form in forms)
        raise AmbiguousError(
            f"the rows could be read as {names}: write one of them as 'messages', or leave out its columns"
        )
    if not forms:
        return None
    (form,) = forms
    reads = tuple(name for name in (form.asked, form.replied, "input", "history") if name in columns)
    return Composed(form.name, reads, lambda record: list(_messages(record, form)))


def _messages(record: Record, form: Dialogue) -> Iterator[Any]:
    """The messages in the columns of a row, the earlier turns in `history` first."""
    history = record.get("history")
    history = parse_list(history) if isinstance(history, str) else history
    for turn in history or ():
        if not (isinstance(turn, list | tuple) and len(turn) == 2):
            raise CellError("history: expected pairs of what was said and replied")
        yield from ({"role": role, "content": said} for role, said in zip(("user", "assistant"), turn, strict=True))
    asked = _said("user", record.get(form.asked))
    if form.asked == "instruction" and (more := text(record.get("input"))):
        asked = [{"role": "user", "content": f"{text(record.get(form.asked))}\n{more}"}]
    yield from asked
    yield from _said("assistant", record.get(form.replied))


def _said(role: str, value: Any) -> list[Any]:
    """A cell as messages: those in it, or a text as one."""
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None else [{"role": role, "content": value}]
