"""ViLT's attention by torch's fused kernel, which transformers 5.23 computes step by step; the same within rounding."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.vilt.modeling_vilt import ViltSelfAttention

from vlatrain.backbones.attention import additive


class FastViltAttention(ViltSelfAttention):
    """Self-attention over words and patches."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        """(B, L, width) -> (B, L, width), and the weights if asked for, by the original. The mask is additive, (B, 1, 1, L)."""
        if output_attentions:
            return super().forward(hidden_states, attention_mask, output_attentions)
        heads = self.num_attention_heads, self.attention_head_size
        query, key, value = (
            layer(hidden_states).unflatten(-1, heads).transpose(1, 2)  # (B, L, width) -> (B, heads, L, head)
            for layer in (self.query, self.key, self.value)
        )
        share = self.dropout.p if self.dropout.training else 0.0
        mask = additive(attention_mask, query.dtype)
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=share)
        return (found.transpose(1, 2).flatten(2),)  # (B, heads, L, head) -> (B, L, width)


FAST: dict[type[nn.Module], type[nn.Module]] = {ViltSelfAttention: FastViltAttention}
