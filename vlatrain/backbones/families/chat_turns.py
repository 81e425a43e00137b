"""Conversations about images with models that see them among the tokens of a text.

Up to the first reply a conversation is a prompt as the model's processor makes it; what follows is text. Where images stand in it,
too, the processor is asked for their tokens behind the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vlatrain.backbones.at_places import logits_at
from vlatrain.backbones.base import Text, blank_text, padded_text
from vlatrain.backbones.chat_template import Turns, placed
from vlatrain.backbones.families.chat import Chat, ChatInputs
from vlatrain.backbones.lengths import UNLIMITED
from vlatrain.backbones.several import counted, expanded, within
from vlatrain.data.sample import IMAGE

if TYPE_CHECKING:
    from vlatrain.data.sample import Turn


class ChatConverser(Chat):
    """The same with a chat template: a `Converser`, too."""

    def _turns(self, turns: Sequence[Turn], words: int, count: int = 1) -> list[tuple[str, str]]:
        """What is said about so many images and replied, of what the user says at most so many tokens."""
        return [(self._said(turn.user, words, count), self.clean(turn.reply)) for turn in turns]

    def conversations(
        self,
        images: Sequence[Any],
        conversations: Sequence[Sequence[Turn]],
        max_length: int,
        shown: Sequence[bool] = (),
    ) -> tuple[ChatInputs, Text]:
        """Up to the first reply as a prompt, and the rest as `rest`."""
        words, image = max_length - self._framing, self.model.config.image_token_id
        said = [self._turns(turns, words, count) for turns, count in zip(conversations, counted(images), strict=True)]
        rows, later, seen, about = list[tuple[list[int], list[int]]](), list[int](), list[Any](), list[bool]()
        for row, (turns, own) in enumerate(zip(said, images, strict=True)):
            _, _, before = self.script.transcript(turns)
            ids, learned, _ = self.script.tokens(turns, placed(turns[1:]))
            left = within(ids, image, max(max_length - before, 0))
            rows.append((ids[:left], learned[:left]))
            later.append(ids[:left].count(image))
            cut_off = placed(turns[1:]) - later[-1]  # images behind the limit
            seen.append(own[: len(own) - cut_off] or own[:1] if cut_off else own)
            about.append((not shown or shown[row]) and cut_off < counted([own])[0])
        given = self._processed(seen, [turns[:1] for turns in said], [] if all(about) else about, later)
        tokens, masks = list[list[int]](), list[list[int]]()
        for (ids, learned), shown_in in zip(rows, given.get("expansions", [[]] * len(rows)), strict=True):
            both = [*expanded(ids, image, shown_in, learned)]
            tokens.append([self.script.end_ids[-1], *(token for token, _ in both)])
            masks.append([0, *(own for _, own in both)])
        rest = self._padded(tokens)
        return {**given, "rest": rest}, Text(rest.ids, padded_text(masks, 0).ids)

    def transcript(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """See `Converser`. What stands before the first reply is only counted."""
        several = any(IMAGE in turn.user for turn in turns)  # of one image, marks are no part of a conversation
        ids, learned, before = self.script.tokens(self._turns(turns, UNLIMITED, 1 + several))
        return [self.tokenizer.pad_token_id] * before + ids, [0] * before + learned

    def conversation_logits(self, inputs: ChatInputs, places: Tensor | None = None) -> Tensor:
        """Next-token logits from the last token before the first reply on, (B, L, vocabulary), or of those at places (B, n); of
        blank inputs, of their text."""
        context, head = self.context(inputs), self.writer.get_output_embeddings()
        if "rest" in inputs:
            rest = inputs["rest"]
            if (order := self._order(context)) is None:
                with logits_at(head, places):
                    return self.logits(context, rest)
            with logits_at(head, None if places is None else places[order]):
                logits = self.logits(self.select_rows(context, order), Text(rest.ids[order], rest.mask[order]))
            return logits[order.argsort()]
        size, length = inputs["input_ids"].shape
        nothing = blank_text(size, 0, inputs["input_ids"].device)
        prompt = self._extended(context, nothing.ids, nothing.mask)
        with logits_at(head, places):
            return self._logits(context, prompt, length - context["states"].shape[1])

    def prompts(
        self,
        images: Sequence[Any],
        conversations: Sequence[Sequence[Turn]],
        max_length: int,
        shown: Sequence[bool] = (),
    ) -> ChatInputs:
        """Conversations up to the last reply; of those that are too long the first turns are left out, with the images in them."""
        said, seen, about = list[Turns](), list[Any](), list[bool]()
        for row, (conversation, own) in enumerate(zip(conversations, images, strict=True)):
            turns = self._turns(conversation, max_length - self._framing, counted([own])[0])
            gone = 0
            while len(turns) > 1 and len(self.script.ids(self.script.asked(turns, images=0))) > max_length:
                gone += placed(turns[:1])
                turns = turns[1:]
            said.append(turns)
            seen.append(own[gone:] or own[:1] if gone else own)
            about.append((not shown or shown[row]) and gone < counted([own])[0])
        return self._processed(seen, said, [] if all(about) else about)
