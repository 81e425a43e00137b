"""Routing functions: parameter-free functions of both modalities' states in the bottleneck.

Qu, Tuytelaars and Moens, "Introducing Routing Functions to Vision-Language Parameter-Efficient Fine-Tuning with Low-Rank
Bottlenecks" (ECCV 2024, arXiv:2403.09377). Their down-projection serves the text's states x_t and the image's x_v alike, a function
of both takes the place of x_t, and the non-linearity follows. Their functions, by our names, of a state h of x_t:

- `add`: h + v, and `multiply`: h * v, element by element;
- `expand`: h V, V being v repeated to a square matrix: (sum of h) * v;
- `attend`: h x_v^T x_v, attention without a softmax.

Deviations: v is the image's one vector with them, here the mean of the states that may be attended to; `attend` is divided by
their number, so that it does not grow with it; where the other states have another width they have a down-projection of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlatrain.adapters.base import Call, Facts
from vlatrain.adapters.bottleneck import Bottleneck, BottleneckOptions, Half, one_of

FUNCTIONS = ("add", "multiply", "expand", "attend")


@dataclass(frozen=True)
class RoutingOptions(BottleneckOptions):
    """Options of `Routing`.

    Attributes:
        function: one of `FUNCTIONS`.
    """

    function: str = "multiply"


class Routing(Bottleneck):
    """`x -> scaling * up(dropout(activation(function(down(x), down(other)))))`. In a call without states of the other modality it
    is a plain bottleneck.

    Parameters: those of `Bottleneck`, and where `other_width` differs from `width` another `other_width * dim + dim` (without
    biases `other_width * dim`): 99,136 for widths of 768 and dim 64.

    Raises:
        ValueError: no states of another modality, or an unknown function.
    """

    Options = RoutingOptions
    reads_other = True

    def __init__(self, facts: Facts, options: RoutingOptions) -> None:
        super().__init__(facts, options)
        one_of("function", options.function, FUNCTIONS)
        if not facts.other_width:
            raise ValueError("needs states of another modality, and this place gets none")
        self.function = options.function
        alike = facts.other_width == facts.width
        self.latent = None if alike else Half(facts.other_width, options.dim, options.bias)
        if self.latent is not None:
            self.latent.start(options.init, options.init_std, up=False)

    def hidden(self, states: Tensor, call: Call) -> Tensor:
        """The bottleneck's states (B, L, dim), as the function gives them."""
        hidden = self.down(states)  # (B, L, dim)
        if call.other is not None:
            latent = (self.down if self.latent is None else self.latent)(call.other)  # (B, S, dim)
            routed = self.routed(hidden, latent, call.mask)
            # where nothing may count there is no other modality
            hidden = (
                routed if call.mask is None else torch.where(call.mask.bool().any(dim=1)[:, None, None], routed, hidden)
            )
        out: Tensor = self.dropout(self.activation(hidden))
        return out

    def routed(self, hidden: Tensor, latent: Tensor, mask: Tensor | None) -> Tensor:
        """The function of states (B, L, dim) and the other modality's (B, S, dim), of which the mask (B, S) lets some count."""
        keep = latent.new_ones(latent.shape[:2], dtype=torch.long) if mask is None else mask.long()  # (B, S)
        weight = keep / keep.sum(dim=1, keepdim=True).clamp(min=1)  # (B, S), counted in whole numbers
        share = latent * weight[..., None].to(latent.dtype)  # (B, S, dim), sums up to the mean
        if self.function == "attend":
            return hidden @ (latent.transpose(1, 2) @ share)  # (B, L, dim) (B, dim, dim)
        mean = share.sum(dim=1, keepdim=True)  # (B, 1, dim)
        if self.function == "add":
            return hidden + mean
        return (hidden if self.function == "multiply" else hidden.sum(dim=-1, keepdim=True)) * mean

    @staticmethod
    def count(width: int, dim: int, bias: bool = True, other_width: int = 0) -> int:
        """Number of parameters of one adapter; `other_width` 0: as wide as the states."""
        own = other_width * dim + (dim if bias else 0) if other_width not in (0, width) else 0
        return Bottleneck.count(width, dim, bias) + own
