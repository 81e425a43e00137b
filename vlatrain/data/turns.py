"""What a cell with a conversation may hold: a list of messages, in either of the two forms in use.

- LLaVA's: `{"from": "human", "value": "<image>\\nwhat is it?"}, {"from": "gpt", "value": "a door"}`;
- chat messages: `{"role": "user", "content": TEXT}`, `{"role": "assistant", ...}`, where the content may also be a list of parts,
  `{"type": "text", "text": TEXT}` and `{"type": "image"}`.

User and assistant take turns, the user first. The image is the sample's; where a message marks its place, this must be the user's
first, which it then stands in front of. What the system says at the start goes before the user's first words, as in the templates
of models that know no system.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlatrain.data.cells import CellError, kind, parse_list, text
from vlatrain.data.sample import Turn

IMAGE = "<image>"
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
FORMS = (("from", "value"), ("role", "content"))


def turns(value: Any, finished: bool = True) -> tuple[Turn, ...]:
    """A cell as the turns of a conversation.

    Args:
        value: a list of messages, or a string with one in it (CSV has no lists, and other formats often hold it so).
        finished: whether the last turn must have its reply.

    Raises:
        CellError: if it is none of these, or one that makes no sense.
    """
    messages = _messages(value)
    system = messages.pop(0)[1] if messages and messages[0][0] == "system" else ""
    if not messages:
        raise CellError("a conversation without messages" if not system else "a conversation of the system alone")
    offset = 2 if system else 1  # messages are counted from 1
    said = []
    for place, (speaker, words) in enumerate(messages):
        expected = ("user", "assistant")[place % 2]
        if speaker != expected:
            raise CellError(
                f"message {place + offset} is the {speaker}'s, where one of the {expected} was expected: user and assistant "
                "take turns, the user first"
            )
        last = place == len(messages) - 1
        if not words and not (last and speaker == "assistant" and not finished):
            raise CellError(f"message {place + offset}: empty {'reply' if speaker == 'assistant' else 'message'}")
        said.append(words)
    if len(said) % 2:
        if finished:
            raise CellError("the last message has no reply")
        said.append("")
    if system:
        said[0] = f"{system}\n\n{said[0]}"
    return tuple(Turn(user, reply) for user, reply in zip(said[::2], said[1::2], strict=True))


def _messages(value: Any) -> list[tuple[str, str]]:
    """Who speaks, and what, message by message."""
    if isinstance(value, str):
        value = parse_list(value)
    if isinstance(value, Mapping) and value and all(isinstance(cells, list) for cells in value.values()):
        if len({len(cells) for cells in value.values()}) > 1:
            raise CellError("the lists of a conversation differ in length")
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if not isinstance(value, list | tuple):
        raise CellError(f"expected a list of messages, found {'nothing' if value is None else kind(value)}")
    found: list[tuple[str, str]] = []
    images = 0
    for number, message in enumerate(value, 1):
        try:
            speaker, words, shown = _message(message)
        except CellError as error:
            raise CellError(f"message {number}: {error}") from None
        images += shown
        if images > 1:
            raise CellError(f"message {number}: a second image; a conversation is about one")
        if shown and (speaker != "user" or any(earlier == "user" for earlier, _ in found)):
            raise CellError(f"message {number}: the image's place is in the user's first message")
        found.append((speaker, words))
    return found


def _message(message: Any) -> tuple[str, str, int]:
    """Who speaks, what, and how many images are shown."""
    if not isinstance(message, Mapping):
        raise CellError(f"expected an object, found {kind(message)}")
    form = next((form for form in FORMS if set(form) <= set(message)), None)
    if form is None:
        raise CellError("needs 'from' and 'value', or 'role' and 'content'")
    speaker, content = message[form[0]], message[form[1]]
    if speaker not in SPEAKERS:
        raise CellError(f"'{form[0]}' is {speaker!r}; it must be one of {', '.join(SPEAKERS)}")
    parts = content if form[0] == "role" and isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    words: list[str] = []
    images = 0
    for part in parts:
        form_of = part.get("type") if isinstance(part, Mapping) else None
        if form_of == "text":
            said = text(part.get("text"))
            images += said.count(IMAGE)
            words.append(said.replace(IMAGE, "").strip())
        elif form_of == "image":
            images += 1
        else:
            raise CellError(f"a part of type {form_of!r}; it must be text or image")
    return SPEAKERS[speaker], "\n".join(filter(None, words)), images
