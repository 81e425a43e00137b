"""ViLT (Kim, Son, Kim, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", ICML 2021,
arXiv:2102.03334) in transformers: one stack of layers over the words and the patches of an image together.

Deviation from transformers 5.23, on purpose: every patch of an image is used, in its place. transformers draws patches at random
(`max_image_length`, for which the published fine-tuned checkpoints ask not), and shuffles them even where it takes all, so that
generating the same answer twice moves the state of the generator and rounds differently. The paper draws patches in pre-training
only. And attention is torch's fused kernel, which transformers computes step by step; the same numbers within rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate, scaled_dot_product_attention
from transformers.models.vilt.modeling_vilt import ViltEncoder, ViltSelfAttention

from vlatrain.backbones import tokenizers
from vlatrain.backbones.answer_list import AnswerList
from vlatrain.backbones.architecture import image_processor_class
from vlatrain.backbones.attention import additive
from vlatrain.backbones.base import Backbone, Context, Inputs, Pair, Text, blank_text, exact
from vlatrain.config import ModelConfig
from vlatrain.injection.context import provide, reads_other


class FastViltAttention(ViltSelfAttention):
    """Self-attention over words and patches."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        """(B, L, width) -> (B, L, width), and the weights if asked for, by the original. The mask is additive, (B, 1, 1, L)."""
        if output_attentions:
            outputs: tuple[Tensor, ...] = super().forward(hidden_states, attention_mask, output_attentions)
            return outputs
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


if TYPE_CHECKING:
    from PIL import Image


class ViltInputs(Inputs, total=False):
    """Images of several aspect ratios, padded.

    Attributes:
        pixel_mask: (B, H, W) 1 for what is image, 0 for padding.
    """

    pixel_mask: Tensor


class Vilt(AnswerList, Backbone):
    """ViLT for answering by choice from a list, or for matching, as `task` says. See `Answerer` and `Matcher`."""

    model: Any
    fast = FAST
    stacks = (ViltEncoder,)
    reader = "fusion"
    scoring = ("classifier", "rank_output")

    @classmethod
    def make_processor(cls, config: ModelConfig, settings: dict[str, Any], texts: Iterable[str]) -> Any:
        """A processor for random weights of such settings, its tokenizer made from texts."""
        images = image_processor_class(settings["model_type"])
        return Pair(
            tokenizers.make_wordpiece(texts, settings["vocab_size"]),
            images(size={"shortest_edge": settings["image_size"]}, size_divisor=settings["patch_size"]),
        )

    @classmethod
    def with_tokens(cls, config: ModelConfig, settings: dict[str, Any], processor: Any) -> dict[str, Any]:
        """The settings with the token ids of a processor that was made."""
        return {**settings, "pad_token_id": processor.tokenizer.pad_token_id}

    def inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str] | None = None, max_length: int = 0
    ) -> ViltInputs:
        """Images of several aspect ratios: (B, 3, H, W) as `pixels`, padded, and (B, H, W) as `pixel_mask`; and questions."""
        encoded = self.image_processor(images=list(images), return_tensors="pt")
        found: ViltInputs = {"pixels": encoded["pixel_values"], "pixel_mask": encoded["pixel_mask"]}
        return found if questions is None else {**found, "question": self.text(questions, max_length)}

    def blank(self, batch_size: int, device: torch.device | str, question: int = 0) -> ViltInputs:
        """Inputs that have only shapes, with questions of so many tokens (0: none)."""
        size = self.model.config.image_size
        found: ViltInputs = {
            "pixels": torch.zeros(batch_size, 3, size, size, device=device),
            "pixel_mask": torch.ones(batch_size, size, size, dtype=torch.long, device=device),
        }
        return {**found, "question": blank_text(batch_size, question, device)} if question else found

    def answer_logits(self, inputs: ViltInputs) -> Tensor:
        """Of each answer that it is right: (B, answers)."""
        return exact(self.model.classifier, self._pooled(self.image_context(inputs), inputs["question"]))

    def image_context(self, inputs: ViltInputs) -> Context:
        """The image's patches as the layers get them, after a first token: `states` (B, 1 + P, width), `mask` (B, 1 + P)."""
        embeddings = self.model.vilt.embeddings
        patches = embeddings.patch_embeddings(inputs["pixels"])  # (B, width, h, w)
        mask = interpolate(inputs["pixel_mask"][:, None].float(), size=patches.shape[2:])[:, 0] > 0  # (B, h, w)
        positions = self._positions(mask).to(patches.dtype)  # (B, width, h, w)
        states = (patches + positions).flatten(2).transpose(1, 2)  # (B, P, width)
        first = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).to(patches.dtype)
        states = torch.cat([first.expand(len(states), -1, -1), states], dim=1)
        mask = mask.flatten(1)  # (B, P)
        return {
            "states": embeddings.dropout(states),
            "mask": torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1).long(),
        }

    def pair_scores(self, context: Context, text: Text) -> Tensor:
        """The score (N,) of its head for matching."""
        return exact(self.model.rank_output, self._pooled(context, text))[:, 0]

    def _positions(self, mask: Tensor) -> Tensor:
        """The learned square of positions stretched over the patches (B, h, w) that an image has: (B, width, h, w)."""
        embeddings, config = self.model.vilt.embeddings, self.model.config
        side = config.image_size // config.patch_size
        # (1, width, side, side)
        learned = embeddings.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        # (B,) each: patches on top of and beside others
        rows, columns = mask.long().sum(dim=1)[:, 0], mask.long().sum(dim=2)[:, 0]
        # (B, h), (B, w)
        down, right = (
            # -1 is the first, 1 the last of the learned ones, whatever their number
            2 * torch.arange(length, device=mask.device) / (number[:, None] - 1).clamp(min=1) - 1
            for length, number in zip(mask.shape[1:], (rows, columns), strict=True)
        )
        height, width = mask.shape[1:]
        # (B, h, w, 2)
        places = torch.stack([right[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], dim=-1)
        learned = learned.float().expand(len(mask), -1, -1, -1)
        return grid_sample(learned, places, mode="bilinear", padding_mode="border", align_corners=True)

    def _pooled(self, context: Context, text: Text) -> Tensor:
        """The pooled state (N, width) of texts with images."""
        states, mask = context["states"], context["mask"]
        handed = provide(self.model, "fusion", states, mask) if reads_other(self.model, "fusion") else nullcontext()
        with handed:
            pooled: Tensor = self.model.vilt(
                input_ids=text.ids, attention_mask=text.mask, image_embeds=states, pixel_mask=mask
            ).pooler_output
            return pooled
