"""BLIP-2 for retrieval (Li et al., ICML 2023, arXiv:2301.12597, section 3.1): the Q-Former as trained in its first stage, which
encodes images by its queries, texts on their own, and both together.

An image has features for each query; it is as similar to a text as the most similar of them. Its matching logits are the mean over
the queries.

Difference from the forward pass in transformers 5.23: texts are tokens only, without placeholders for queries in front.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vlatrain.backbones import tokenizers
from vlatrain.backbones.base import Backbone, Inputs, Pair, Text, exact, square_processor, unit
from vlatrain.config import ModelConfig


class Blip2(Backbone):
    """BLIP-2 without language model. See `Embedder` for the operations."""

    model: Any
    reader = "qformer"
    scoring = ("itm_head",)

    @classmethod
    def make_processor(cls, config: ModelConfig, settings: dict[str, Any], texts: Iterable[str]) -> Any:
        """A processor for random weights of such settings, its tokenizer made from texts."""
        return Pair(
            tokenizers.make_wordpiece(texts, settings["qformer_config"]["vocab_size"]), square_processor(settings)
        )

    @classmethod
    def vocabulary(cls, settings: Any) -> int:
        """How many words the Q-Former has embeddings for."""
        size: int = settings.qformer_config.vocab_size
        return size

    @classmethod
    def with_tokens(cls, config: ModelConfig, settings: dict[str, Any], processor: Any) -> dict[str, Any]:
        """The settings with the only token id that the Q-Former knows of."""
        padding = {"pad_token_id": processor.tokenizer.pad_token_id}
        return {**settings, "qformer_config": {**settings["qformer_config"], **padding}}

    def image_features(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Features (B, queries, D) of an image, and all states (B, S, width) of its tower."""
        with self.prefix("vision", inputs):
            states = self.model.vision_model(pixel_values=inputs["pixels"]).last_hidden_state
        asked = self._queries(states)
        found = self._encoded(asked, None, asked.shape[1], states)
        return unit(self.model.vision_projection(found)), states

    def text_features(self, text: Text) -> Tensor:
        """Projected [CLS] state of the text on its own."""
        found = self._encoded(self.model.embeddings(input_ids=text.ids), text.mask, 0)
        return unit(self.model.text_projection(found[:, 0]))

    def logit_scale(self) -> Tensor:
        """1 / 0.07: the initial temperature. transformers drops the learned one."""
        return torch.full((), 1 / 0.07, device=self.device)

    @property
    def matches(self) -> bool:
        """Always: it has a matching head."""
        return True

    def match(self, states: Tensor, text: Text) -> Tensor:
        """Matching head on the queries' states after queries and text have attended to each other, and queries to the image."""
        asked = self._queries(states)
        mask = torch.cat([text.mask.new_ones(asked.shape[:2]), text.mask], dim=1)
        both = self.model.embeddings(input_ids=text.ids, query_embeds=asked)  # (N, queries + L, width)
        found = self._encoded(both, mask, asked.shape[1], states)[:, : asked.shape[1]]
        return exact(self.model.itm_head, found).mean(dim=1)

    def _queries(self, states: Tensor) -> Tensor:
        queries: Tensor = self.model.query_tokens.expand(len(states), -1, -1)
        return queries

    def _encoded(self, embeddings: Tensor, mask: Tensor | None, queries: int, states: Tensor | None = None) -> Tensor:
        """States of the Q-Former's tokens (N, L, width), the first so many of which are queries, that attend to an image's."""
        seen = None if states is None else states.new_ones(states.shape[:2], dtype=torch.long)
        out: Tensor = self.model.qformer(
            query_embeds=embeddings,
            query_length=queries,
            attention_mask=mask,
            encoder_hidden_states=states,
            encoder_attention_mask=seen,
        ).last_hidden_state
        return out
