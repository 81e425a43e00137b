"""How many tokens of text a model has room for: its positions, without those that the image and a prompt's own words take.

A tower with absolute positions fails beyond its last; one with rotary positions goes on, at lengths that it was never trained at.
Both count. T5's relative positions have no end. `TowerConfig.max_positions` says where a model's settings have the number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlatrain.config import TaskConfig
from vlatrain.config.spec import TOLD_IMAGE

UNLIMITED = 1 << 30  # more tokens than any text has
SLACK = 4  # tokens that a question can have more inside its prompt than alone: its ends may be tokenised with their neighbours
KINDS = ("text", "question", "target", "conversation", "prompt", "new")


@dataclass(frozen=True)
class Room:
    """The tokens that a model can take of a kind of text.

    Attributes:
        positions: of the tower that the text is in; None: there is no limit.
        taken: by what else is there.
        by: what that is, for messages.
        reply: kept for a text that is to be generated behind.
    """

    positions: int | None = None
    taken: int = 0
    by: str = ""
    reply: int = 0

    @property
    def tokens(self) -> int:
        """How many; none or fewer: nothing fits."""
        return UNLIMITED if self.positions is None else self.positions - self.taken - self.reply

    def __str__(self) -> str:
        used = [f"{self.by} {'take' if ' and ' in self.by else 'takes'} {self.taken}"] if self.taken else []
        used += [f"task.decode.max_new_tokens keeps {self.reply}"] if self.reply else []
        return f"{self.positions} positions" + (f" ({', '.join(used)})" if used else "")


def ended(ids: Sequence[int], end: Sequence[int], max_length: int) -> list[int]:
    """The tokens of a text and those that end it, at most so many. A text that is cut has no end: nothing ends there, and that it
    did is not to be learned."""
    return [*ids, *end] if len(ids) + len(end) <= max_length else [*ids[:max_length]]


def rooms(
    config: TaskConfig,
    read: int | None,
    write: int | None = None,
    *,
    image: int = 0,
    prompt: int = 0,
    lead: int = 0,
    one: bool = False,
) -> dict[str, Room]:
    """The room for each kind of text.

    Args:
        config: the task, or the subtask of a joint one.
        read: positions of the tower that reads questions and texts; None: no limit.
        write: positions of the tower that writes; None: no limit.
        image: tokens of the image, where they stand among those of the question.
        prompt: further tokens of a prompt, but for the question's.
        lead: tokens in front of a text that is written, in the tower that writes.
        one: whether image, question and text that is written are one sequence in `read` (a causal language model).

    Returns:
        By kind, the room for: a `text` that is read on its own, a `question`, a `target` that is learned or scored (with the token
        that ends it), a `conversation` that is learned (without the image's tokens), a `prompt` (a conversation up to its last
        reply), and `new`, the tokens that can be generated.
    """
    given = "image and prompt" if image else "the prompt"
    found = dict.fromkeys(KINDS, Room()) | {"text": Room(read), "question": Room(read, image + prompt, given)}
    if not one:
        start = "start and end"
        return found | {"target": Room(write, lead, "the start"), "new": Room(write, lead + 1, start)}
    asked, reply = config.spec.prompt != TOLD_IMAGE, config.decode.most_new + 1  # and the token that ends it
    before = image + prompt + lead
    if read is not None and (config.answers == "rank" or "label" in config.spec.fields):
        reply = min(reply, (read - before) // 2)  # nothing is generated
    question = Room(read, before, given, reply)
    put = config.most(question.tokens) if asked else 0
    return found | {
        "question": question,
        "target": Room(read, before + put, "image, prompt and question" if asked else given),
        "conversation": Room(read, image, "the image"),
        "prompt": Room(read, image, "the image", reply),
        "new": Room(read, before + asked + 1, given),
    }
