"""How a conversation about an image is written for a model that continues text: by its chat template, or as plain text.

What is learned of a reply is what the model has to write: the reply and the token that ends it. Templates do not mark where replies
begin; it is found by writing the beginning of a conversation on its own, up to where the model would go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlatrain.backbones.lengths import ended
from vlatrain.backbones.several import PLACE
from vlatrain.config import UserError

UNTOLD = ", so replies cannot be told from what is given"

Turns = Sequence[tuple[str, str]]
"""What is said, and what is replied, turn by turn."""


class Script:
    """The writing of one model.

    Args:
        processor: its processor.
        lead: without chat template, what stands between prompt and reply.
        end: without chat template, the text that ends a reply; empty: the tokenizer's end token.

    Raises:
        UserError: the template leaves replies out.
    """

    def __init__(self, processor: Any, lead: str = "", end: str = "") -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        self.template = template.get("default") if isinstance(template, dict) else template
        self.lead, self.end, self.between = lead, end if self.ids(end) else self.tokenizer.eos_token, ""
        if self.template:
            self._learn_from_template()
        # as good as any prompt to see how a reply is tokenised behind one
        self.before = self.asked([("?", "")], images=0)

    def _learn_from_template(self) -> None:
        """What it has between prompt and reply, what ends a reply, and what else stands before the next turn."""
        before = self._rendered(_messages("?"), goes_on=True)
        written = self._rendered([*_messages("?"), *_messages(reply="!")], goes_on=False)
        place = written.rfind("!")
        if place < 0:
            raise self.unreadable("leaves out what the assistant says", UNTOLD)
        # some templates begin the assistant's turn otherwise where it is still to be written: LLaVA-OneVision's has a blank less
        self.lead = written[len(before) : place] if written.startswith(before) else ""
        tail = written[place + 1 :]
        ends = [tail.index(token) + len(token) for token in self.tokenizer.all_special_tokens if token in tail]
        self.end = tail[: min(ends)] if ends else self.tokenizer.eos_token
        self.between = tail[min(ends) :] if ends else tail

    # -- texts --

    def asked(self, turns: Turns, images: int = 1) -> str:
        """A conversation up to where the last reply begins, which is ignored, about so many images; see `pieces`."""
        return "".join(self.pieces([*turns[:-1], (turns[-1][0], "")], images))

    def pieces(self, turns: Turns, images: int = 1) -> list[str]:
        """A conversation in pieces: what is given up to a reply, the reply with its end, what is given up to the next, ...

        An empty last reply is left out. Images stand where their places are, or where there are none in front of the first turn;
        without images, there are no places.

        Raises:
            UserError: the template writes a conversation otherwise once it has gone on; or there are several turns and no template.
        """
        if not self.template:
            if len(turns) > 1:
                raise UserError("a conversation of several turns needs a chat template, and this processor has none")
            return [turns[0][0], *self._replied(turns[0][1])]
        messages: list[dict[str, Any]] = []
        found, before, first = [], "", 0 if placed(turns) else images
        for said, reply in turns:
            said = said if images else said.replace(PLACE, "")
            messages += _messages(said, images=0 if messages else first)
            written = self._rendered(messages, goes_on=True)
            if not written.startswith(before):
                raise self.unreadable("writes what was said otherwise once the conversation has gone on", UNTOLD)
            found += [(self.between if before else "") + written[len(before) :], *self._replied(reply)]
            messages += _messages(reply=reply.strip())
            before = self._rendered(messages, goes_on=False)
        return found

    def _replied(self, reply: str) -> list[str]:
        return [f"{self.lead}{reply.strip()}{self.end}"] if reply.strip() else []

    def _rendered(self, messages: list[dict[str, Any]], goes_on: bool) -> str:
        rendered: str = self.processor.apply_chat_template(
            messages, chat_template=self.template, add_generation_prompt=goes_on, tokenize=False
        )
        return rendered

    def unreadable(self, what: str, so: str = "") -> UserError:
        """That its template cannot be used, as what it does, and what follows of that."""
        return UserError(
            f"the chat template of {self.tokenizer.name_or_path or 'this tokenizer'} {what}{so}: put another chat_template.jinja "
            "into a local copy of the checkpoint"
        )

    # -- tokens --

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, and nothing around them."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end a reply, usually one."""
        return self.ids(self.end)

    def behind(self, before: str, text: str) -> list[int]:
        """Tokens of a text behind another; on its own where its first would be one with the last of the other."""
        given, whole = self.ids(before), self.ids(before + text)
        return whole[len(given) :] if whole[: len(given)] == given else self.ids(text)

    def reply(self, text: str, max_length: int, prompt: str = "") -> tuple[list[int], list[int]]:
        """Tokens of the prompt that a reply starts with, and those of the reply itself with its end, at most so many."""
        start = f"{self.lead}{prompt}" if prompt else ""
        own = self.behind(self.before + start, f"{' ' if prompt else self.lead}{text.strip()}")
        return self.behind(self.before, start), ended(own, self.end_ids, max_length)

    def transcript(self, turns: Turns, images: int = 0) -> tuple[list[int], list[int], int]:
        """A whole conversation, by default without its images; of these each is one token.

        Returns:
            Its tokens, for each whether it is learned, and the number of tokens before the first reply.
        """
        text, ids, learned, first = "", list[int](), list[int](), 0
        for number, piece in enumerate(self.pieces(turns, images)):
            new = self.behind(text, piece)
            text += piece
            ids, learned = ids + new, learned + [number % 2] * len(new)
            first = first or len(ids)
        return ids, learned, first

    def tokens(self, turns: Turns, images: int = 0) -> tuple[list[int], list[int], int]:
        """The same from the first reply on."""
        ids, learned, first = self.transcript(turns, images)
        return ids[first:], learned[first:], first


def cut(tokenizer: Any, text: str, max_length: int) -> str:
    """At most so many tokens of a text, at least one."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text if len(offsets) <= max_length else text[: offsets[max(1, max_length) - 1][1]]


def placed(turns: Turns) -> int:
    """How many images have their places in a conversation."""
    return sum(said.count(PLACE) for said, _ in turns)


def _messages(said: str | None = None, reply: str = "", images: int = 0) -> list[dict[str, Any]]:
    """What the user says, so many images in front of it, and what the assistant replies, where there is something."""
    messages = []
    if said is not None:
        content = [{"type": "image"}] * images
        for number, text in enumerate(said.split(PLACE)):
            content += [{"type": "image"}] if number else []
            content += [{"type": "text", "text": text}] if text or PLACE not in said else []
        messages.append({"role": "user", "content": content})
    if reply:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
    return messages
