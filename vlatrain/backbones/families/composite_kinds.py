"""The kinds of composites, by how their language model writes.

A causal model gets image, then text, and goes on from it (Tsimpoukelis et al., "Multimodal Few-Shot Learning with Frozen Language
Models", NeurIPS 2021); an encoder-decoder model has image and question in its encoder and writes with its decoder (Cho et al.,
"Unifying Vision-and-Language Tasks via Text Generation", ICML 2021; Sung et al., "VL-Adapter", CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from vlatrain.backbones.at_places import logits_at
from vlatrain.backbones.base import Context, Text, padded_text
from vlatrain.backbones.chat_template import Script
from vlatrain.backbones.families.composite import Composite, CompositeInputs
from vlatrain.backbones.several import counted, numbered
from vlatrain.backbones.writing import Written
from vlatrain.config import DecodeConfig
from vlatrain.config.spec import TOLD_TURNS
from vlatrain.data.sample import IMAGE
from vlatrain.injection.context import exported

if TYPE_CHECKING:
    from vlatrain.data.sample import Turn


@dataclass(frozen=True)
class Texts:
    """A tokenizer as a processor of conversations: a language model's template takes texts, and no lists of images and texts."""

    tokenizer: Any
    chat_template: str

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The messages as the template writes them."""
        plain = [{**one, "content": "".join(piece.get("text", "") for piece in one["content"])} for one in messages]
        written: str = self.tokenizer.apply_chat_template(plain, **options)
        return written


class CausalComposite(Composite):
    """A causal language model: image, prompt and answer in one sequence. `Generator` and `Converser`.

    The first token of a target stands for the prompt's last one: that is where the first token of the answer is predicted. Prompts
    are padded in front, so that their last tokens are in one column; positions do not count padding.
    """

    reader = "decoder"
    box_towers = ("decoder", "decoder")  # the image's states as they are projected

    @cached_property
    def script(self) -> Script | None:
        """The writing of a model with a chat template (`model.options.chat`); None: prompts are plain text."""
        template = self.tokenizer.chat_template if self.config.options.get("chat") else None
        return Script(Texts(self.tokenizer, template)) if template else None

    def _prompt(self, texts: Sequence[str]) -> Text:
        if self.script:
            rows = [self.script.ids(self.script.asked([(text, "")], images=0)) for text in texts]
        else:
            rows = [self._start() + self._ids(text) for text in texts]
        return self._padded(rows, left=True)

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """A token that stands for the prompt's last one, the text's own prompt, the text, the end token."""
        if not self.script:
            return super().target(texts, max_length, prompt)
        rows = []
        for text in texts:
            start, own = self.script.reply(self.clean(text), max_length, prompt)
            rows.append([*self._start(), *start, *own])
        return self._padded(rows), 1 + len(start)

    def _begun(self, prompt: str) -> list[int]:
        """The tokens that a text is to begin with."""
        return self.script.reply("", 1, prompt)[0] if self.script else self._ids(prompt, behind=True)

    def _start(self) -> list[int]:
        start = self.language.config.bos_token_id
        return [self.end if start is None else start]

    def context(self, inputs: CompositeInputs) -> Context:
        """The image's projected states, and the prompt's tokens."""
        return {**self._visual(inputs), "ids": inputs["prompt"].ids, "mask": inputs["prompt"].mask}

    def logits(self, context: Context, target: Text) -> Tensor:
        """Next-token logits, (N, L, vocabulary)."""
        ids = torch.cat([context["ids"], target.ids[:, 1:]], dim=1)
        return self._logits(context, ids, torch.cat([context["mask"], target.mask[:, 1:]], dim=1), target.ids.shape[1])

    def _logits(self, context: Context, ids: Tensor, mask: Tensor, last: int) -> Tensor:
        """Next-token logits of the last so many tokens."""
        embeddings, mask = self._embedded(context, ids, mask)
        with self._shown(context):
            logits: Tensor = self.language(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=last,
            ).logits
            return logits

    def grounding_states(self, inputs: CompositeInputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Grounder`: the image's projected states, and those of the prompt behind it."""
        context = self.context(inputs)
        ids = context["ids"]
        embeddings, mask = self._embedded(context, ids, context["mask"])
        with self._shown(context):
            states = self.language.base_model(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
                use_cache=False,
            ).last_hidden_state
        return context["visual"], states[:, -ids.shape[1] :], context["mask"]

    def write(self, context: Context, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[Written]:
        """Greedy or beam search, key-value cached."""
        ids, mask = context["ids"], context["mask"]
        if given := self._begun(prompt):
            ids = torch.cat([ids, ids.new_tensor(given).expand(len(ids), -1)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(ids), len(given))], dim=1)
        embeddings, mask = self._embedded(context, ids, mask)
        with self._shown(context):
            begun = {"inputs_embeds": embeddings, "attention_mask": mask}
            return self.search(self.language, begun, decode, alternatives)

    def conversations(
        self,
        images: Sequence[Any] | None,
        conversations: Sequence[Sequence[Turn]],
        max_length: int,
        shown: Sequence[bool] = (),
        counts: Sequence[int] = (),
    ) -> tuple[CompositeInputs, Text]:
        """Turn by turn: `user: ... assistant: reply`, the end token."""
        rows, learned = zip(*map(self.transcript, _named(images, conversations, counts)), strict=True)
        text = self._padded([row[:max_length] for row in rows])
        mask = padded_text([own[:max_length] for own in learned], 0).ids
        return {**self._about(images, counts or [1] * len(rows), shown), "prompt": text}, Text(text.ids, mask)

    def transcript(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """See `Converser`."""
        if self.script:
            ids, own, _ = self.script.transcript([(self._said(turn), self.clean(turn.reply)) for turn in turns])
            return ids, own
        row, learned = self._start(), [0]
        for turn in turns:
            asked, reply = self._asked(turn), [*self._ids(self.clean(turn.reply), behind=True), self.end]
            row, learned = row + asked + reply, learned + [0] * len(asked) + [1] * len(reply)
        return row, learned

    def conversation_logits(self, inputs: CompositeInputs, places: Tensor | None = None) -> Tensor:
        """Next-token logits of the conversations' tokens, (B, L, vocabulary), or of those at places (B, n)."""
        text = inputs["prompt"]
        with logits_at(self.language.get_output_embeddings(), places):
            return self._logits(self._visual(inputs), text.ids, text.mask, text.ids.shape[1])

    def prompts(
        self,
        images: Sequence[Any] | None,
        conversations: Sequence[Sequence[Turn]],
        max_length: int,
        shown: Sequence[bool] = (),
        counts: Sequence[int] = (),
    ) -> CompositeInputs:
        """Conversations up to the last reply; of those that are too long the end."""
        rows = [self._given(turns)[-max_length:] for turns in _named(images, conversations, counts)]
        return {**self._about(images, counts or [1] * len(rows), shown), "prompt": self._padded(rows, left=True)}

    def _about(self, images: Sequence[Any] | None, counts: Sequence[int], shown: Sequence[bool]) -> CompositeInputs:
        """The images' part of the inputs of conversations; some may be hidden."""
        seen = self._unseen(counts) if images is None else self._seen(images)
        return seen if all(shown) else {**seen, "shown": torch.tensor(shown)}

    def _given(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens of a conversation up to where the last reply begins."""
        if self.script:
            said = [(self._said(turn), self.clean(turn.reply)) for turn in turns]
            return self.script.ids(self.script.asked(said, images=0))
        before, _ = self.transcript(turns[:-1])
        return [*before, *self._asked(turns[-1])]

    def _asked(self, turn: Turn) -> list[int]:
        return self._ids(self._said(turn))

    def _said(self, turn: Turn) -> str:
        return self.config.prompts[TOLD_TURNS].replace("{question}", self.clean(turn.user))


def _named(
    images: Sequence[Any] | None, conversations: Sequence[Sequence[Turn]], counts: Sequence[int]
) -> list[list[Turn]]:
    """Conversations in which an image's number stands where the place of one of several is marked."""
    found = []
    each = counts or ([1] * len(conversations) if images is None else counted(images))
    for turns, count in zip(conversations, each, strict=True):
        told: list[Turn] = []
        before = 0
        for turn in turns:
            told.append(replace(turn, user=numbered(turn.user, before)) if count > 1 else turn)
            before += turn.user.count(IMAGE)
        found.append(told)
    return found


class Seq2SeqComposite(Composite):
    """An encoder-decoder language model: image and prompt in the encoder, the answer in the decoder. `Generator`."""

    causal = False
    box_towers = ("text", "text")

    def _prompt(self, texts: Sequence[str]) -> Text:
        return self._padded([self.tokenizer(text)["input_ids"] for text in texts])

    def _start(self) -> list[int]:
        """The decoder's start token, and what the tokenizer puts in front of every text (BART's `<s>`)."""
        front = [token for token in self.tokenizer("")["input_ids"] if token != self.end]
        return [self.language.config.decoder_start_token_id, *front]

    def context(self, inputs: CompositeInputs) -> Context:
        """The encoder's `states` (B, S + L, d) and their `mask`; and the image's, for adapters in the decoder."""
        visual = self._visual(inputs)
        embeddings, mask = self._embedded(visual, inputs["prompt"].ids, inputs["prompt"].mask)
        if "visible" in inputs or "images" in inputs:  # padding to the end: an encoder counts it where it is
            order = mask.argsort(dim=1, descending=True, stable=True)  # (B, S + L)
            embeddings = embeddings.take_along_dim(order[..., None], dim=1)
            mask = mask.take_along_dim(order, dim=1)
        with self._shown(visual):
            states = self.language.get_encoder()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return {**visual, "states": states, "mask": mask, **exported(self.model)}

    def grounding_states(self, inputs: CompositeInputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Grounder`: the image's projected states, and the encoder's of the prompt behind it."""
        context, length = self.context(inputs), inputs["prompt"].ids.shape[1]
        return context["visual"], context["states"][:, -length:], context["mask"][:, -length:]

    def logits(self, context: Context, target: Text) -> Tensor:
        """Next-token logits, (N, L, vocabulary)."""
        with self._shown(context):
            logits: Tensor = self.language(
                encoder_outputs=BaseModelOutput(last_hidden_state=context["states"]),
                attention_mask=context["mask"],
                decoder_input_ids=target.ids,
                decoder_attention_mask=target.mask,
                use_cache=False,
            ).logits
            return logits

    def write(self, context: Context, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[Written]:
        """Greedy or beam search, key-value cached."""
        states = context["states"]
        given = self._start() + self._ids(prompt)
        inputs = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states),
            "attention_mask": context["mask"],
            "decoder_input_ids": context["mask"].new_tensor(given).expand(len(states), -1),
        }
        with self._shown(context):
            return self.search(self.language, inputs, decode, alternatives)
