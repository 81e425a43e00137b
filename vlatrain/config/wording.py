"""How questions are asked: `task.prompt`, a text with columns in braces, and options to choose among."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

QUESTION, OPTIONS = (
    "question",
    "options",
)  # in braces, these are the fields of a sample, whatever their columns are called
BY_TEXT, BY_LETTER = "options", "letter"  # `task.answers` of those who choose
LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Wording:
    """How a task words its questions.

    Attributes:
        template: the question with columns in braces; empty: the question as it is.
        answers: `task.answers`.
    """

    template: str = ""
    answers: str = ""

    @property
    def chooses(self) -> bool:
        """Whether each question has options, one of which is the answer."""
        return self.answers in (BY_TEXT, BY_LETTER)

    @property
    def asks(self) -> bool:
        """Whether a row needs a question."""
        return not self.template or QUESTION in self.columns

    @property
    def lists(self) -> bool:
        """Whether the model sees them."""
        return OPTIONS in self.columns

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in braces. Raises `ValueError`, saying why the template is none."""
        found: list[str] = []
        for _, name, form, conversion in string.Formatter().parse(self.template):
            if name == "" or form or conversion:
                raise ValueError("in braces stands the name of a column and nothing else; {{ is a brace")
            found += [name] if name is not None else []
        return tuple(dict.fromkeys(found))

    def filled(self, values: Mapping[str, str]) -> str:
        """The template with a text for each of its columns."""
        pieces = string.Formatter().parse(self.template)
        return "".join(text + (values[name] if name is not None else "") for text, name, _, _ in pieces)

    def listed(self, options: Sequence[str]) -> str:
        """Options as a question lists them: with their letters where one is to be named, else parted by commas."""
        if self.answers == BY_LETTER:
            return " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        return ", ".join(options)


def problems(template: str, answers: str) -> list[str]:
    """What is wrong with the wording of questions."""
    asked = Wording(template, answers)
    try:
        columns = asked.columns
    except ValueError as error:
        return [f"task.prompt={template!r}: {error}"]
    if template and not columns:
        return [
            f"task.prompt={template!r}: has no column in braces, such as {{question}}, so all questions would be the same"
        ]
    if answers == BY_LETTER and OPTIONS not in columns:
        shown = f"{template or '{question}'} {{options}}"
        return [f"task.answers=letter: the model must see the letters of the options: set task.prompt='{shown}'"]
    return []
