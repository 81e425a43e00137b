"""Bottleneck adapter: down-projection, non-linearity, up-projection, residual.

- After a sub-layer (attention, cross-attention or feed-forward), before its residual addition and norm: Houlsby et al.,
  "Parameter-Efficient Transfer Learning for NLP" (ICML 2019, arXiv:1902.00751), after every sub-layer; Pfeiffer et al.,
  "AdapterFusion" (EACL 2021, arXiv:2005.00247), after the feed-forward one only. For vision-and-language models Sung et al.,
  "VL-Adapter" (CVPR 2022, arXiv:2112.06825).
- Parallel, from the sub-layer's input to its output, with a scale: He et al., "Towards a Unified View of
  Parameter-Efficient Transfer Learning" (ICLR 2022, arXiv:2110.04366).

Deviation: the up-projection starts at zero, so that the adapted model equals the base at step 0; the papers start near
zero, from N(0, std), which is `init="normal"` here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlatrain.adapters.base import Adapter, Call, Facts
from vlatrain.adapters.projections import autocasts, projection

ACTIVATIONS = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "identity": nn.Identity,
}
READS = {"after": "output", "parallel": "input"}
SCALES = ("fixed", "learned", "gated")


@dataclass(frozen=True)
class PlainOptions:
    """Options of bottlenecks of all kinds.

    Attributes:
        dim: bottleneck width.
        activation: a key of `ACTIVATIONS`.
        dropout: drop rate in the bottleneck.
        scaling: factor on the output; where it is learned or gated, its start.
        bias: whether the projections have biases.
        init: `zero` (the up-projection) or `normal`, see `projections.draw`.
        init_std: standard deviation with `normal`.
        placement: `after` reads the sub-layer's output, `parallel` its input.
    """

    dim: int
    activation: str = "gelu"
    dropout: float = 0.0
    scaling: float = 1.0
    bias: bool = True
    init: str = "zero"
    init_std: float = 0.02
    placement: str = "after"


@dataclass(frozen=True)
class BottleneckOptions(PlainOptions):
    """Options of `Bottleneck`.

    Attributes:
        norm_before: a layer norm in front.
        norm_after: a layer norm behind. It starts with a weight of zero, else nothing could be zero at the start.
        scale: `fixed`; `learned`, a number; `gated`, `scaling * 2 * sigmoid(w x + b)` for each token, which starts at `scaling`.
        projection: `dense`, `low_rank`, `phm` or `lora`, see `vlatrain.adapters.projections`.
        rank: of `low_rank` and `lora`; of `phm`, where 0 is full.
        terms: of `phm`.
        columns: outputs of the up-projection that are a module of their own (to be shared); 0: none.
    """

    norm_before: bool = False
    norm_after: bool = False
    scale: str = "fixed"
    projection: str = "dense"
    rank: int = 8
    terms: int = 4
    columns: int = 0


class Bottleneck(Adapter):
    """`x -> scale * norm_after(up(dropout(activation(down(norm_before(x))))))`, added to the sub-layer's output.

    `down` and `up` are its two halves: each is a projection with its norm, and each can be shared.

    Parameters: `width * dim + dim` down and `dim * width + width` up with biases, `2 * width * dim` without: 99,136 for
    width 768 and dim 64. Each norm adds `2 * width`, a learned scale 1, a gate `width + 1`.

    Raises:
        ValueError: an unknown activation, init, placement, scale or projection.
    """

    Options: ClassVar[type[Any]] = BottleneckOptions

    def __init__(self, facts: Facts, options: BottleneckOptions) -> None:
        super().__init__(facts, options)
        one_of("activation", options.activation, ACTIVATIONS)
        one_of("init", options.init, ("zero", "normal"))
        one_of("placement", options.placement, READS)
        one_of("scale", options.scale, SCALES)
        width, dim, scaling = facts.width, options.dim, options.scaling
        kind = (options.bias, options.projection, options.rank, options.terms)
        self.reads = READS[options.placement]
        self.down = Half(width, dim, *kind, norm_width=width if options.norm_before else 0)
        self.activation = ACTIVATIONS[options.activation]()
        self.dropout = nn.Dropout(options.dropout)
        self.up = Half(dim, width, *kind, norm_width=width if options.norm_after else 0, columns=options.columns)
        self.scaling = scaling
        self.scale = nn.Parameter(torch.tensor(float(scaling))) if options.scale == "learned" else None
        self.gate = nn.Linear(width, 1) if options.scale == "gated" else None
        self.down.start(options.init, options.init_std, up=False)
        self.up.start(options.init, options.init_std, up=True)
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, states: Tensor, call: Call = Call()) -> Tensor:  # noqa: B008, an immutable default
        """What to add to the states: computed in the parameters' type unless autocast says otherwise."""
        hidden = self.hidden(states, call)  # (..., dim)
        out, factor = self.up.out(hidden), self.factor(states)
        scaled = isinstance(factor, Tensor) or factor != 1
        return (out * factor if scaled else out).to(states.dtype)

    def hidden(self, states: Tensor, call: Call) -> Tensor:
        """The bottleneck's states, (..., dim). What a design does in the bottleneck, it does here."""
        hidden: Tensor = self.dropout(self.activation(self.down(states)))
        return hidden

    def factor(self, states: Tensor) -> Tensor | float:
        """The scale: a number, or one for each token (..., 1)."""
        if self.gate is not None:
            return self.scaling * 2 * torch.sigmoid(self.gate(states.to(self.gate.weight.dtype)))
        return self.scaling if self.scale is None else self.scale

    @staticmethod
    def count(width: int, dim: int, bias: bool = True) -> int:
        """Number of parameters of one plain adapter."""
        return 2 * width * dim + (width + dim if bias else 0)


class Half(nn.Module):
    """Half an adapter: a projection with its norm, the part that places can share.

    Args:
        inputs: width of the input.
        outputs: width of the output.
        bias: whether the projection has one.
        kind: of the projection.
        rank: see `projection`.
        terms: see `projection`.
        norm_width: width of the norm; 0: none.
        columns: see `projection`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool,
        kind: str = "dense",
        rank: int = 8,
        terms: int = 4,
        norm_width: int = 0,
        columns: int = 0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(norm_width) if norm_width else None
        self.projection = projection(kind, inputs, outputs, bias, rank, terms, columns)

    def start(self, init: str, std: float, up: bool) -> None:
        """Draw the projection; a norm behind an up-projection starts with a weight of zero."""
        self.projection.start(init, std, up and self.norm is None)  # type: ignore[operator]
        if up and self.norm is not None and init == "zero":
            nn.init.zeros_(self.norm.weight)

    def forward(self, states: Tensor) -> Tensor:
        """Norm, then projection: (..., in) -> (..., out), in the parameters' type unless autocast says otherwise."""
        if not autocasts(states):  # which would only undo it
            states = states.to(next(self.parameters()).dtype)
        found: Tensor = self.projection(states if self.norm is None else self.norm(states))
        return found

    def out(self, states: Tensor) -> Tensor:
        """Projection, then norm: (..., in) -> (..., out)."""
        out = self.projection(states)
        found: Tensor = out if self.norm is None else self.norm(out)
        return found


def one_of(key: str, value: str, known: object) -> None:
    """Refuse a value that is not among the known ones.

    Raises:
        ValueError: naming them.
    """
    if value not in known:  # type: ignore[operator]
        raise ValueError(f"{key}={value}: must be one of {', '.join(known)}")  # type: ignore[arg-type]
