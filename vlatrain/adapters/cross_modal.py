"""Cross-modal adapter: a bottleneck whose states attend to the other modality's in the bottleneck's own space.

The composition is this project's own; its pieces have their sources:
- the bottleneck at each sub-layer of a vision-and-language model: Sung et al., "VL-Adapter" (CVPR 2022, arXiv:2112.06825);
- adapters as the place where two frozen towers first meet: Jiang et al., "Cross-Modal Adapter for Text-Video Retrieval" (2022,
  arXiv:2211.09623). Theirs share weights between the towers (`adapter.share`); here one tower reads the other's states;
- the gate, tanh of a learned number, which starts at zero there: Alayrac et al., "Flamingo" (NeurIPS 2022, arXiv:2204.14198).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vlatrain.adapters.base import Call, Facts
from vlatrain.adapters.bottleneck import Bottleneck, BottleneckOptions, Half


@dataclass(frozen=True)
class CrossModalOptions(BottleneckOptions):
    """Options of `CrossModal`; `dim` is a multiple of `latent_heads`.

    Attributes:
        latent_heads: attention heads in the bottleneck.
        gate: the number that the gate starts with. An adapter that starts at zero may have it open: what is behind a closed one
            learns only as fast as it opens.
    """

    latent_heads: int = 1
    gate: float = 0.0


class CrossModal(Bottleneck):
    """`x -> scaling * up(dropout(activation(h + tanh(gate) * attention(h, z, z))))` with `h = down(x)` and `z = latent(other)`.

    `latent` brings the other modality's states into the bottleneck's space, where they are keys and values at once. In a call
    without them (BLIP's text on its own) it is a plain bottleneck.

    Parameters: those of `Bottleneck`, `other_width * dim + dim` for `latent` (without biases `other_width * dim`), and 1 for the
    gate: 148,353 for widths of 768 and dim 64.

    Raises:
        ValueError: no states of another modality, or heads that do not divide the bottleneck.
    """

    Options = CrossModalOptions
    reads_other = True

    def __init__(self, facts: Facts, options: CrossModalOptions) -> None:
        super().__init__(facts, options)
        dim, latent_heads = options.dim, options.latent_heads
        if not facts.other_width:
            raise ValueError("needs states of another modality, and this place gets none")
        if latent_heads < 1 or dim % latent_heads:
            raise ValueError(f"latent_heads={latent_heads}: must divide dim={dim}")
        self.heads = latent_heads
        self.latent = Half(facts.other_width, dim, options.bias)
        self.latent.start(options.init, options.init_std, up=False)
        self.cross_gate = nn.Parameter(torch.tensor(float(options.gate)))

    def hidden(self, states: Tensor, call: Call) -> Tensor:
        """The bottleneck's states (B, L, dim), after they have attended to the other modality's."""
        hidden = self.down(states)  # (B, L, dim)
        if call.other is not None:
            hidden = hidden + torch.tanh(self.cross_gate) * self.attended(hidden, call.other, call.mask)
        out: Tensor = self.dropout(self.activation(hidden))
        return out

    def attended(self, hidden: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
        """What states (B, L, dim) find in those of the other modality, (B, S, other_width), where the mask (B, S) lets them;
        nothing where it lets none."""
        latent = self._split(self.latent(other))  # (B, heads, S, dim / heads)
        if mask is None:
            return self._joined(scaled_dot_product_attention(self._split(hidden), latent, latent))
        keep = mask.bool()[:, None, None]  # (B, 1, 1, S)
        some = keep.any(dim=-1, keepdim=True)  # (B, 1, 1, 1); kernels differ in what a row without any comes to
        found = scaled_dot_product_attention(self._split(hidden), latent, latent, attn_mask=keep | ~some)
        return self._joined(found * some)

    def _joined(self, states: Tensor) -> Tensor:
        # (B, heads, L, dim / heads) -> (B, L, dim)
        return states.transpose(1, 2).flatten(2)

    def _split(self, states: Tensor) -> Tensor:
        # (B, N, dim) -> (B, heads, N, dim / heads)
        split: Tensor = states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split

    @staticmethod
    def count(width: int, dim: int, bias: bool = True, other_width: int = 0) -> int:
        """Number of parameters of one adapter; `other_width` 0: as wide as the states."""
        return Bottleneck.count(width, dim, bias) + (other_width or width) * dim + (dim if bias else 0) + 1
