"""UniAdapter: one down-projection for image, text and their fusion, and an up-projection for each.

Lu et al., "UniAdapter: Unified Parameter-Efficient Transfer Learning for Cross-modal Modeling" (ICLR 2024,
arXiv:2302.06605). Parallel to the feed-forward layer; the places of a layer number share the down-projection and the norm in
front of it over the towers (`share` in its YAML). Where a layer attends to the image, the up-projection of the fusion and that of
the text are added and normed.

In the towers it has, the image's place has the visual up-projection, the text's its own, and a place in a tower that
cross-attends (`fusion`, `decoder`) the text's, the fusion's and the norm. Which of the two ways such a tower goes is seen from the
call: with the other modality's states, or on its own (the text side of retrieval). Where it never goes on its own (answers
and captions) nothing is idle either, as the text's up-projection takes part in both.

All up-projections start at zero, and so does what the norm makes of them: the start is the frozen model. A norm of zeros
has a steep gradient, 1 / sqrt(eps), which Adam and gradient clipping take. (Starting with a norm's weight of zero instead
avoids it, but learns far more slowly.)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vlatrain.adapters.base import Adapter, Call, Facts
from vlatrain.adapters.bottleneck import ACTIVATIONS, Half, one_of
from vlatrain.adapters.projections import Dense

ALONE = ("vision", "text")  # towers whose layers never attend to the other modality


@dataclass(frozen=True)
class UniAdapterOptions:
    """Options of `UniAdapter`.

    Attributes:
        dim: bottleneck width.
        activation: a key of `ACTIVATIONS`.
        dropout: drop rate in the bottleneck.
        scaling: factor on the output.
        bias: whether the projections have biases.
    """

    dim: int
    activation: str = "relu"
    dropout: float = 0.0
    scaling: float = 0.1
    bias: bool = True


class UniAdapter(Adapter):
    """`h = activation(down(norm(x)))`; alone `scaling * up(h)`, with the other modality `scaling * norm(fusion(h) + up(h))`.

    Parameters: `2 * width + width * dim + dim` down, once for all towers that share it; `dim * width + width` up in each place;
    as much again and `2 * width` in one that cross-attends. For BLIP-base, two towers of twelve layers of width 768:
    `12 * (4 * 768 + 768 * dim + dim + 3 * (768 * dim + 768))`, 4,784,640 with dim 128 and 18,945,024 with dim 512.

    Raises:
        ValueError: an unknown activation.
    """

    Options = UniAdapterOptions
    reads = "input"

    def __init__(self, facts: Facts, options: UniAdapterOptions) -> None:
        super().__init__(facts, options)
        one_of("activation", options.activation, ACTIVATIONS)
        width, dim, bias = facts.width, options.dim, options.bias
        self.reads_other = facts.tower not in ALONE  # elsewhere nothing reads it, so it need not be handed over
        self.down = Half(width, dim, bias, norm_width=width)
        self.activation = ACTIVATIONS[options.activation]()
        self.dropout = nn.Dropout(options.dropout)
        self.up = Dense(dim, width, bias=bias)
        self.fusion = Dense(dim, width, bias=bias) if self.reads_other else None
        self.norm = nn.LayerNorm(width) if self.reads_other else None
        self.scaling = options.scaling
        self.down.start("zero", 0, up=False)
        self.up.start("zero", 0, up=True)
        if self.fusion is not None:
            self.fusion.start("zero", 0, up=True)

    def forward(self, states: Tensor, call: Call = Call()) -> Tensor:  # noqa: B008, an immutable default
        """What to add to the feed-forward's output; `states` are its input."""
        hidden = self.dropout(self.activation(self.down(states)))  # (B, L, dim)
        out = self.up(hidden)  # (B, L, width)
        if self.fusion is not None and self.norm is not None and call.other is not None:
            out = self.norm(self.fusion(hidden) + out)
        found: Tensor = (out * self.scaling).to(states.dtype)
        return found
