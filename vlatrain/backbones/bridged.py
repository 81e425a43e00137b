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
from transformers.modeling_outputs import BaseModelOutput

from vlatrain.backbones.base import Inputs, Text
from vlatrain.backbones.chat import Chat, searched
from vlatrain.config import DecodeConfig


class Prefix(Chat):
    """A causal language model behind a Q-Former (BLIP-2 with OPT, InstructBLIP with Vicuna)."""

    @property
    def writer(self) -> Any:
        """The language model."""
        return self.model.language_model

    def _logits(self, context: Inputs, prompt: Inputs, last: int) -> Tensor:
        with self._shown(context):
            return self.writer(
                inputs_embeds=self._embedded(context, prompt["input_ids"]),
                attention_mask=prompt["attention_mask"],
                position_ids=(prompt["attention_mask"].cumsum(dim=1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=last,
            ).logits

    def _embedded(self, context: Inputs, ids: Tensor) -> Tensor:
        """Embeddings (N, L, d) of tokens (N, L), those of the image by its states."""
        embeddings = self.model.get_input_embeddings()(ids)
        return embeddings.masked_scatter(
            (ids == self.model.config.image_token_id)[..., None], context["states"].to(embeddings.dtype)
        )

    def generate(self, context: Inputs, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[str]:
        """Greedy or beam search, key-value cached."""
        given = self._begun(context, prompt)
        with self._shown(context):
            ids = self.writer.generate(
                inputs_embeds=self._embedded(context, given["input_ids"]),
                attention_mask=given["attention_mask"],
                **searched(decode, alternatives),
            )  # (B * alternatives, new)
        return self._read(ids)


class Seq2Seq(Prefix):
    """An encoder-decoder language model, image and prompt in its encoder (BLIP-2 and InstructBLIP with Flan-T5, Florence-2)."""

    in_front = False

    @property
    def writer(self) -> Any:
        """The language model with its head."""
        return getattr(self.model, "language_model", self.model)

    def context(self, inputs: Inputs) -> Inputs:
        """The encoder's `states` (B, L, d) and their `mask`, (B, L)."""
        seen = super().context(inputs)
        embeddings, mask = self._embedded(seen, seen["input_ids"]), seen["attention_mask"]
        with self._shown(seen):
            states = self.model.get_encoder()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return {"states": states, "mask": mask}

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """The decoder's start, the text's own prompt, the text, the end."""
        start = self._start(prompt)
        end = self.tokenizer.eos_token_id
        rows = [[*start, *self.script.ids(f" {text}" if prompt else text)[: max_length - 1], end] for text in texts]
        return self._padded(rows), len(start)

    def _start(self, prompt: str) -> list[int]:
        """The decoder's start token, what the tokenizer puts in front of every text (BART's `<s>`), and the prompt."""
        front = [token for token in self.tokenizer("")["input_ids"] if token != self.tokenizer.eos_token_id]
        return [self.model.config.text_config.decoder_start_token_id, *front, *self.script.ids(prompt)]

    def _decoded(self, context: Inputs) -> dict[str, Any]:
        return {"encoder_outputs": BaseModelOutput(context["states"]), "attention_mask": context["mask"]}

    def logits(self, context: Inputs, target: Text) -> Tensor:
        """Next-token logits, (N, L, vocabulary)."""
        return self.writer(
            **self._decoded(context),
            decoder_input_ids=target.ids,
            decoder_attention_mask=target.mask,
            use_cache=False,
        ).logits

    def generate(self, context: Inputs, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[str]:
        """Greedy or beam search, key-value cached."""
        states = context["states"]
        start = torch.tensor(self._start(prompt), device=states.device).expand(len(states), -1)  # (B, P)
        ids = self.writer.generate(
            **self._decoded(context), decoder_input_ids=start, **searched(decode, alternatives)
        )  # (B * alternatives, P + new)
        return self._read(ids[:, start.shape[1] :])
