"""Models that give an image to a language model of its own class, as embeddings among those of a text: BLIP-2 (Li et al., ICML
2023, arXiv:2301.12597), InstructBLIP (Dai et al., NeurIPS 2023, arXiv:2305.06500), whose Q-Former reads the prompt too, and
Florence-2 (Xiao et al., CVPR 2024, arXiv:2311.06242).

Their prompts are plain text, and each is about one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from vlatrain.backbones.base import Context, Text
from vlatrain.backbones.chat_template import cut
from vlatrain.backbones.families.chat import Chat, ChatInputs
from vlatrain.backbones.lengths import SLACK, UNLIMITED, Room, ended, rooms
from vlatrain.backbones.writing import Written
from vlatrain.config import DecodeConfig, TaskConfig
from vlatrain.injection.context import exported, restore


class Prefix(Chat):
    """A causal language model behind a Q-Former (BLIP-2 with OPT, InstructBLIP with Vicuna)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.model.modules():
            if type(module) is OPTDecoderLayer:
                module.__class__ = OptLayer

    @property
    def writer(self) -> Any:
        """The language model."""
        return self.model.language_model

    def _said(self, text: str, max_length: int, count: int = 1) -> str:
        """A question of at most so many tokens, and of as many for InstructBLIP's Q-Former, which has a tokenizer of its own."""
        said = super()._said(text, max_length, count)
        own = getattr(self.processor, "qformer_tokenizer", None)
        if own is None:
            return said
        prompt = self.asked.replace("{question}", "")
        room = (self.positions("qformer") or UNLIMITED) - len(own(prompt)["input_ids"]) - SLACK
        return cut(own, said, room)

    def _logits(self, context: Context, prompt: Context, last: int) -> Tensor:
        with self._shown(context):
            logits: Tensor = self.writer(
                inputs_embeds=self._embedded(context, prompt["input_ids"]),
                attention_mask=prompt["attention_mask"],
                use_cache=False,
                logits_to_keep=last,
            ).logits
            return logits

    def _embedded(self, context: Context, ids: Tensor) -> Tensor:
        """Embeddings (N, L, d) of tokens (N, L), those of the image by its states."""
        embeddings = self.model.get_input_embeddings()(ids)
        filled: Tensor = embeddings.masked_scatter(
            (ids == self.model.config.image_token_id)[..., None], context["states"].to(embeddings.dtype)
        )
        return filled

    def write(self, context: Context, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[Written]:
        """Greedy or beam search, key-value cached."""
        given = self._begun(context, prompt)
        with self._shown(context):
            embeddings = self._embedded(context, given["input_ids"])
            begun = {"inputs_embeds": embeddings, "attention_mask": given["attention_mask"]}
            return self.search(self.writer, begun, decode, alternatives)


class OptLayer(OPTDecoderLayer):
    """OPT's layer, whose feed-forward sees sequences (B, L, width): adapters know which row is whose. In transformers it sees the
    tokens of all rows as one list."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, L, width) -> (B, L, width)."""
        first = self.do_layer_norm_before
        states = self.self_attn_layer_norm(hidden_states) if first else hidden_states
        states, _ = self.self_attn(
            hidden_states=states,
            past_key_values=past_key_values,
            position_ids=position_ids,
            attention_mask=attention_mask,
            **kwargs,
        )
        hidden_states = hidden_states + dropout(states, self.dropout, self.training)
        if not first:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        states = self.final_layer_norm(hidden_states) if first else hidden_states
        states = self.fc2(self.activation_fn(self.fc1(states)))
        hidden_states = hidden_states + dropout(states, self.dropout, self.training)
        return hidden_states if first else self.final_layer_norm(hidden_states)


class Seq2Seq(Prefix):
    """An encoder-decoder language model, image and prompt in its encoder (BLIP-2 and InstructBLIP with Flan-T5, Florence-2)."""

    in_front = False
    reader = "text"

    def rooms(self, config: TaskConfig) -> dict[str, Room]:
        """Image and prompt are in the encoder, the text in the decoder."""
        read, write = self.positions(self.reader), self.positions("decoder")
        return rooms(config, read, write, image=self._taken(config), lead=len(self._start(config.begins_with)))

    @property
    def writer(self) -> Any:
        """The language model with its head."""
        return getattr(self.model, "language_model", self.model)

    def context(self, inputs: ChatInputs) -> Context:
        """The encoder's `states` (B, L, d) and their `mask`, (B, L)."""
        seen = super().context(inputs)
        embeddings, mask = self._embedded(seen, seen["input_ids"]), seen["attention_mask"]
        with self._shown(seen):
            states = self.model.get_encoder()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return {"states": states, "mask": mask, **exported(self.model)}

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """The decoder's start, the text's own prompt, the text, the end."""
        start = self._start(prompt)
        end = self.tokenizer.eos_token_id
        said = map(self.clean, texts)
        own = (self.script.ids(f" {text}" if prompt else text) for text in said)
        rows = [[*start, *ended(ids, [end], max_length)] for ids in own]
        return self._padded(rows), len(start)

    def _start(self, prompt: str) -> list[int]:
        """The decoder's start token, what the tokenizer puts in front of every text (BART's `<s>`), and the prompt."""
        front = [token for token in self.tokenizer("")["input_ids"] if token != self.tokenizer.eos_token_id]
        return [self.model.config.text_config.decoder_start_token_id, *front, *self.script.ids(prompt)]

    def _decoded(self, context: Context) -> dict[str, Any]:
        return {"encoder_outputs": BaseModelOutput(context["states"]), "attention_mask": context["mask"]}

    def logits(self, context: Context, target: Text) -> Tensor:
        """Next-token logits, (N, L, vocabulary)."""
        with restore(self.model, context):
            logits: Tensor = self.writer(
                **self._decoded(context),
                decoder_input_ids=target.ids,
                decoder_attention_mask=target.mask,
                use_cache=False,
            ).logits
            return logits

    def write(self, context: Context, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[Written]:
        """Greedy or beam search, key-value cached."""
        states = context["states"]
        start = torch.tensor(self._start(prompt), device=states.device).expand(len(states), -1)  # (B, P)
        with restore(self.model, context):
            begun = {**self._decoded(context), "decoder_input_ids": start}
            return self.search(self.writer, begun, decode, alternatives)
