"""CLIP (Radford et al., ICML 2021, arXiv:2103.00020) in transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from vlatrain.backbones.base import Backbone, Inputs, Text
from vlatrain.injection.context import hand, reads_other


class Clip(Backbone):
    """CLIP for retrieval. See `Embedder` for the operations."""

    model: Any

    def image_features(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Projected pooled state of the image, and all its states."""
        output = self.model.vision_model(pixel_values=inputs["pixels"])
        return normalize(self.model.visual_projection(output.pooler_output), dim=-1), output.last_hidden_state

    def text_features(self, text: Text) -> Tensor:
        """Projected state of the text's end token."""
        output = self.model.text_model(input_ids=text.ids, attention_mask=text.mask)
        return normalize(self.model.text_projection(output.pooler_output), dim=-1)

    def logit_scale(self) -> Tensor:
        """CLIP's learned scale, at most 100 as in the paper."""
        return self.model.logit_scale.exp().clamp(max=100.0)

    @property
    def matches(self) -> bool:
        """Whether an adapter in the text tower reads the image. CLIP's own towers do not meet."""
        return reads_other(self.model, "text")

    def match(self, states: Tensor, text: Text) -> Tensor:
        """Similarity (N,) of an image and a text that is encoded given this image, times the logit scale."""
        states = self.model.vision_model.post_layernorm(states)
        images = normalize(self.model.visual_projection(states[:, 0]), dim=-1)
        with hand(self.model, "text", states):
            texts = self.text_features(text)
        return (images * texts).sum(dim=-1) * self.logit_scale()
