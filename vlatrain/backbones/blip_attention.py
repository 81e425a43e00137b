"""BLIP's attention by torch's fused kernel. transformers 5.23 computes it step by step in both towers, and keeps every step's
result for the backward pass; the same numbers within rounding come from `scaled_dot_product_attention` without.

The modules stay what they are, with their names and weights; only their class is another, a subclass. Where somebody asks for the
attention's weights, which the kernel does not give, the original is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention


class FastVisionAttention(BlipAttention):
    """Self-attention of the image tower."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """(B, L, width) -> (B, L, width), and the weights if asked for."""
        if kwargs.get("output_attentions"):
            return super().forward(hidden_states, **kwargs)
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, L, 3, heads, head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, head) each
        dropout = self.dropout.p if self.dropout.training else 0.0
        found = scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        return self.projection(found.transpose(1, 2).flatten(2)), None  # (B, heads, L, head) -> (B, L, width)


class FastTextAttention(BlipTextSelfAttention):
    """Self-attention or cross-attention of a text tower, with a key-value cache or without."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, width) -> (B, L, width), and the weights if asked for. Masks are additive, (B, 1, L or 1, S)."""
        if kwargs.get("output_attentions"):
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, past_key_values, **kwargs
            )
        query = self._split(self.query(hidden_states))
        crosses = encoder_hidden_states is not None
        key, value = self._keys_and_values(
            encoder_hidden_states if encoder_hidden_states is not None else hidden_states, crosses, past_key_values
        )
        mask = encoder_attention_mask if crosses else attention_mask
        if (
            mask is not None
        ):  # a number that another type does not have would become infinite, and a whole row of it NaN
            mask = mask.clamp(min=torch.finfo(query.dtype).min).to(query.dtype)
        dropout = self.dropout.p if self.dropout.training else 0.0
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return found.transpose(1, 2).flatten(2), None  # (B, heads, L, head) -> (B, L, width)

    def _split(self, states: Tensor) -> Tensor:
        # (B, L, width) -> (B, heads, L, head)
        return states.unflatten(-1, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)

    def _keys_and_values(self, states: Tensor, crosses: bool, past: Cache | None) -> tuple[Tensor, Tensor]:
        """(B, heads, S, head) each: of the states, after those in the cache; of cross-attention, once for all tokens."""
        own: Any = past
        if isinstance(past, EncoderDecoderCache):
            own = past.cross_attention_cache if crosses else past.self_attention_cache
            if crosses and past.is_updated.get(self.layer_idx):
                return own.layers[self.layer_idx].keys, own.layers[self.layer_idx].values
        key, value = self._split(self.key(states)), self._split(self.value(states))
        if own is not None:
            key, value = own.update(key, value, self.layer_idx)
            if crosses and isinstance(past, EncoderDecoderCache):
                past.is_updated[self.layer_idx] = True
        return key, value


FAST: dict[type[nn.Module], type[nn.Module]] = {
    BlipAttention: FastVisionAttention,
    BlipTextSelfAttention: FastTextAttention,
}


def make_fast(model: nn.Module) -> None:
    """Let every attention of a BLIP model use the fused kernel."""
    for module in model.modules():
        if type(module) in FAST:
            module.__class__ = FAST[type(module)]
