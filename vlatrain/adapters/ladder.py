"""Ladder side-tuning: a small network beside the frozen one, fed by its layers. Nothing goes back through the trunk.

Sung, Cho and Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning" (NeurIPS 2022,
arXiv:2206.06522). Each layer's output is projected down and mixed by a learned gate with the side's states so far; a small block
works on the mixture; after the last layer the side's states are projected up and added to the trunk's. The blocks start from the
trunk's own weights, pruned. Layers without a point are left out of the side (LST's layer dropping).

The trunk's layers get detached inputs, so that none of them keeps anything for the backward pass (but for the first, where
something trains before it: a visual projection, say). The side's states go from
layer to layer outside the layers themselves: gradient checkpointing, which runs a layer again, does not run the side again.

Deviations: a side block is the feed-forward half of a layer only; mixing over positions is left to the trunk, so that
generation needs no second cache (`vlatrain.adapters.lst` has whole layers). The side begins at the first layer's output, not at
the embeddings. The trunk's layers are pruned each for itself. The up-projection starts at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlatrain.adapters.base import Adapter, Call, Facts
from vlatrain.adapters.bottleneck import ACTIVATIONS, one_of

EXPANSION = 4  # the width of a side block's inner layer, in side widths
STATES = "side"


@dataclass(frozen=True)
class LadderOptions:
    """Options of `Ladder`.

    Attributes:
        activation: a key of `bottleneck.ACTIVATIONS`.
        scaling: factor on what is added to the trunk's output.
        reduction: the trunk's width in side widths.
        temperature: of the gate; the lower, the faster it moves.
    """

    activation: str = "gelu"
    scaling: float = 1.0
    reduction: int = 4
    temperature: float = 0.1


class Ladder(Adapter):
    """One rung: `s = g down(x) + (1 - g) s_before`, `s = s + out(act(inner(norm(s))))`, with `g = sigmoid(gate / temperature)`.

    Parameters, with the side width `d = width // reduction`: `width * d + d` down, 1 for the gate (the first has none), and
    `8 d^2 + 7 d` for the block; the last has `d * width + width` up too. See `count`.

    Raises:
        ValueError: an unknown activation, or a side without width.
    """

    Options = LadderOptions
    at: ClassVar[str] = "layer"

    def __init__(self, facts: Facts, options: LadderOptions) -> None:
        super().__init__(facts, options)
        width = facts.width
        check_sizes(width, options.activation, options.reduction, options.temperature)
        side = width // options.reduction
        self.scaling, self.temperature, self.index = options.scaling, options.temperature, facts.index
        self.down = nn.Linear(width, side)
        self.gate = None if facts.first else nn.Parameter(torch.zeros(()))
        self.norm = nn.LayerNorm(side)
        self.inner = nn.Linear(side, EXPANSION * side)
        self.activation = ACTIVATIONS[options.activation]()
        self.out = nn.Linear(EXPANSION * side, side)
        self.up = nn.Linear(side, width) if facts.last else None
        if self.up is not None:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def enter(self, arguments: dict[str, Any], call: Call) -> dict[str, Any]:
        """The layer's arguments, detached: nothing goes back through the trunk, whoever made them. The embeddings are left as they
        are: what made them may train."""
        found = detached(arguments)
        return found | {"hidden_states": arguments["hidden_states"]} if self.index == 0 else found

    def forward(self, states: Tensor, call: Call) -> Tensor | None:
        """What the last rung adds to the trunk's output, (B, L, width); the others hand their states on and add nothing."""
        side = self.down(states.to(self.down.weight.dtype))  # (B, L, d)
        if self.gate is not None:
            share = torch.sigmoid(self.gate / self.temperature)
            side = share * side + (1 - share) * call.carried.pop(STATES)
        side = side + self.out(self.activation(self.inner(self.norm(side))))
        if self.up is None:
            call.carried[STATES] = side
            return None
        found: Tensor = (self.scaling * self.up(side)).to(states.dtype)
        return found

    def adopt(self, frozen: Mapping[str, nn.Module]) -> None:
        """Start the block from the trunk's feed-forward, cut down."""
        begin_as(frozen, self.inner, self.out)

    @staticmethod
    def count(width: int, rungs: int, reduction: int = 4) -> int:
        """Number of parameters of a ladder."""
        side = width // reduction
        block = 2 * EXPANSION * side * side + (EXPANSION + 3) * side
        return rungs * (width * side + side + block) + (rungs - 1) + (side * width + width)


def check_sizes(width: int, activation: str, reduction: int, temperature: float) -> None:
    """Refuse what no side can have.

    Raises:
        ValueError: an unknown activation, a side without width, or a temperature that is none.
    """
    one_of("activation", activation, ACTIVATIONS)
    if not 1 <= reduction <= width:
        raise ValueError(f"reduction={reduction}: must be from 1 to {width}, the width of the trunk")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be more than 0")


def detached(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's arguments, from which nothing goes back to where they are from."""
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in arguments.items()}


@torch.no_grad()
def begin_as(frozen: Mapping[str, nn.Module], inner: nn.Linear, out: nn.Linear) -> None:
    """Start a small feed-forward block from the trunk's, cut down to its largest rows (by their L1 norm): of `out` those that the
    side is wide, of `inner` as many as the block has, and the columns that belong to them. Where there is none, or a quantised one,
    or too small a one, the block stays as it is.

    Args:
        frozen: the layer's frozen modules, by site and role.
        inner: the block's first linear layer; out: its second.
    """
    whole_inner, whole_out = frozen.get("ffn.inner"), frozen.get("ffn.out")
    if not (isinstance(whole_inner, nn.Linear) and isinstance(whole_out, nn.Linear)):
        return
    if whole_inner.out_features < inner.out_features or not whole_inner.weight.is_floating_point():
        return
    states = largest(whole_out.weight, out.out_features)  # which of the trunk's states the block is to know
    hidden = largest(whole_inner.weight, inner.out_features)
    for own, whole, rows, columns in ((inner, whole_inner, hidden, states), (out, whole_out, states, hidden)):
        own.weight.copy_(whole.weight[rows][:, columns])
        if whole.bias is not None and own.bias is not None:
            own.bias.copy_(whole.bias[rows])


def largest(weight: Tensor, count: int) -> Tensor:
    """Indices (count,) of a weight's rows with the largest L1 norm, in their order."""
    return weight.abs().sum(dim=1).topk(count).indices.sort().values
