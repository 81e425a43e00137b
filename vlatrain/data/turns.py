"""What a cell with a conversation may hold: a list of messages, in either of the two forms in use.

- LLaVA's and ShareGPT's: `{"from": "human", "value": "<image>\\nwhat is it?"}, {"from": "gpt", "value": "a door"}`;
- chat messages: `{"role": "user", "content": TEXT}`, `{"role": "assistant", ...}`, where the content may also be a list of parts,
  `{"type": "text", "text": TEXT}`, `{"type": "image"}`, which marks the image's place, `{"type": "image", "image": PATH}`, or
  OpenAI's `{"type": "image_url", "image_url": {"url": PATH}}`, where the path may also be a data: URI.

User and assistant take turns, the user first. A sample's one image stands in front of the user's first message; a mark of its place
is taken out of the texts, wherever and however often it stands there. Of several images each keeps its place: `placed` has the same
turns with `<image>` where an image stands. What the system says at the start goes before the user's first words, as in the
templates of models that know no system.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlatrain.data.cells import CellError, clipped, kind, parse_list, text
from vlatrain.data.sample import IMAGE, Turn

SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
TOOLS = ("tool", "tools", "function", "function_call", "observation", "ipython")
FORMS = (("from", "value"), ("role", "content"))
TEXTS = ("text", "input_text", "output_text")
PLACEHOLDERS = ("<bbox>", "<ref-object>")  # ms-swift's, for what stands in another column
IMAGES = ("image", "image_url", "input_image")
PLACES = ("image", "image_url", "path", "url")  # keys of a part with the image itself


@dataclass(frozen=True)
class Conversation:
    """A conversation.

    Attributes:
        turns: what is said.
        images: what its messages hold of images: paths, URIs or the images themselves.
        marks: how often the place of an image is marked, without saying which.
        moved: whether a mark stands elsewhere than once in the user's first message.
        placed: the turns with `IMAGE` at the place of each image; empty: there is none.
    """

    turns: tuple[Turn, ...]
    images: tuple[Any, ...] = ()
    marks: int = 0
    moved: bool = False
    placed: tuple[Turn, ...] = ()


@dataclass
class Message:
    """One message: who speaks, what, the images in it, how often it marks the place of one, and its words with all marks."""

    speaker: str
    words: str
    images: list[Any]
    marks: int
    placed: str = ""


def conversation(value: Any, finished: bool = True, system: str = "", placeholders: bool = False) -> Conversation:
    """A cell as a conversation.

    Args:
        value: a list of messages, or a string with one in it (CSV has no lists, and other formats often hold it so).
        finished: whether the last turn must have its reply.
        system: what the system says, where the row has it in a column of its own.
        placeholders: whether texts may have marks in place of names and boxes, which the caller fills in.

    Raises:
        CellError: if it is none of these, or one that makes no sense.
    """
    messages = list(_messages(value))
    for number, message in enumerate(messages, 1):
        if not placeholders and (mark := next((mark for mark in PLACEHOLDERS if mark in message.words), None)):
            raise CellError(
                f"message {number}: {mark} stands for what is in 'objects', which only task=grounding and grounding_words take; "
                "write names and boxes into the text"
            )
    shown = [place for place, message in enumerate(messages) for _ in range(message.marks + len(message.images))]
    first = next((place for place, message in enumerate(messages) if message.speaker == "user"), 0)
    turns = _turns(messages, finished, system)
    images = tuple(image for message in messages for image in message.images)
    marks = sum(message.marks for message in messages)
    placed = [replace(message, words=message.placed) for message in messages]
    return Conversation(
        turns,
        images,
        marks,
        len(shown) > 1 or any(place > first for place in shown),
        _turns(placed, finished, system) if shown else (),
    )


def _turns(messages: list[Message], finished: bool, system: str) -> tuple[Turn, ...]:
    rest = list(messages)
    if rest and rest[0].speaker == "system":
        system = "\n\n".join(filter(None, (system, rest.pop(0).words)))
    if not rest:
        raise CellError("a conversation of the system alone" if messages else "a conversation without messages")
    offset = 1 + len(messages) - len(rest)  # messages are counted from 1
    said = []
    for place, message in enumerate(rest):
        expected = ("user", "assistant")[place % 2]
        if message.speaker != expected:
            raise CellError(
                f"message {place + offset} is the {message.speaker}'s, where one of the {expected} was expected: user and "
                "assistant take turns, the user first"
            )
        last = place == len(rest) - 1
        if not message.words and not (last and expected == "assistant" and not finished):
            raise CellError(f"message {place + offset}: empty {'reply' if expected == 'assistant' else 'message'}")
        said.append(message.words)
    if len(said) % 2:
        if finished:
            raise CellError("the last message has no reply")
        said.append("")
    if system:
        said[0] = f"{system}\n\n{said[0]}"
    return tuple(Turn(user, reply) for user, reply in zip(said[::2], said[1::2], strict=True))


def _messages(value: Any) -> Iterator[Message]:
    if isinstance(value, str):
        value = parse_list(value)
    if isinstance(value, Mapping) and value and all(isinstance(cells, list) for cells in value.values()):
        if len({len(cells) for cells in value.values()}) > 1:
            raise CellError("the lists of a conversation differ in length")
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if not isinstance(value, list | tuple):
        raise CellError(f"expected a list of messages, found {'nothing' if value is None else kind(value)}")
    for number, message in enumerate(value, 1):
        try:
            yield _message(message)
        except CellError as error:
            raise CellError(f"message {number}: {error}") from None


def _message(message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise CellError(f"expected an object, found {kind(message)}")
    form = next((form for form in FORMS if set(form) <= set(message)), None)
    if form is None:
        raise CellError("needs 'from' and 'value', or 'role' and 'content'")
    speaker, content = message[form[0]], message[form[1]]
    if speaker in TOOLS or message.get("tool_calls"):
        raise CellError(
            f"'{form[0]}' is {clipped(repr(speaker))}: calls of tools and their results are not taken; leave such conversations out"
        )
    if speaker not in SPEAKERS:
        raise CellError(f"'{form[0]}' is {clipped(repr(speaker))}; it must be one of {', '.join(SPEAKERS)}")
    parts = content if form[0] == "role" and isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    words, placed = list[str](), list[str]()
    read = Message(SPEAKERS[speaker], "", [], 0)
    for part in parts:
        form_of = _type_of(part)
        if form_of in TEXTS:
            said = text(part.get("text"))
            read.marks += said.count(IMAGE)
            words.append(said.replace(IMAGE, "").strip())
            placed.append(said.strip())
        elif form_of in IMAGES:
            image = _image_in(part)
            read.images += [] if image is None else [image]
            read.marks += image is None
            placed.append(IMAGE)
        else:
            raise CellError(f"a part of type {clipped(repr(form_of))}; it must be text or image")
    if read.speaker == "assistant" and (read.marks or read.images):
        raise CellError("the assistant shows an image; an image is shown by the user")
    read.words, read.placed = "\n".join(filter(None, words)), "\n".join(filter(None, placed))
    return read


def _type_of(piece: Any) -> Any:
    """The type of a part; where it names none, as Qwen's do, the key it has."""
    if not isinstance(piece, Mapping):
        return None
    named = piece.get("type")
    return named if named is not None else next((key for key in ("text", *PLACES) if piece.get(key) is not None), None)


def _image_in(piece: Mapping[str, Any]) -> Any:
    """What a part holds of an image; None: it marks its place."""
    image = next((piece[key] for key in PLACES if piece.get(key)), None)
    if isinstance(image, Mapping) and "url" in image:
        image = image["url"]
    return image


def refuse_tools(value: Any) -> None:
    """Refuse a conversation for which tools are described. Raises `CellError`."""
    if parse_list(value) if isinstance(value, str) else value:
        raise CellError("describes tools, whose calls are not taken; leave such conversations out")
