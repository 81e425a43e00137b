"""Bottleneck adapter: down-projection, non-linearity, up-projection, residual.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP" (ICML 2019, arXiv:1902.00751); for vision-and-language
models Sung et al., "VL-Adapter" (CVPR 2022, arXiv:2112.06825). It is put on the output of a sub-layer (attention,
cross-attention or feed-forward), before that sub-layer's residual addition and norm.

Deviation: the up-projection starts at zero, so that the adapted model equals the base at step 0; the papers start near
zero, from N(0, std), which is `init="normal"` here.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

ACTIVATIONS = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "identity": nn.Identity,
}


class Bottleneck(nn.Module):
    """`x -> scaling * up(dropout(activation(down(x))))`, to be added to `x`.

    Parameters: `width * dim + dim` down and `dim * width + width` up with biases, `2 * width * dim` without:
    99,136 for width 768 and dim 64.

    Args:
        width: width of the states it adapts.
        dim: bottleneck width.
        activation: a key of `ACTIVATIONS`.
        dropout: drop rate in the bottleneck.
        scaling: factor on the output.
        bias: whether the projections have biases.
        init: `zero`: the up-projection is zero and the down-projection drawn as LoRA's is, by the width (He et al.,
            "Towards a Unified View of Parameter-Efficient Transfer Learning", ICLR 2022); `normal`: both from N(0, init_std).
        init_std: standard deviation with `normal`.

    Raises:
        ValueError: an unknown activation or init.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        activation: str = "gelu",
        dropout: float = 0.0,
        scaling: float = 1.0,
        bias: bool = True,
        init: str = "zero",
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; there are {', '.join(ACTIVATIONS)}")
        if init not in ("zero", "normal"):
            raise ValueError(f"unknown init {init!r}; there are zero, normal")
        self.down = nn.Linear(width, dim, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(dim, width, bias=bias)
        self.scaling = scaling
        self.init, self.init_std = init, init_std
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections as `init` says; biases are zero."""
        if self.init == "zero":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))  # U(-b, b) with b = 1 / sqrt(width)
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.normal_(self.down.weight, std=self.init_std)
            nn.init.normal_(self.up.weight, std=self.init_std)
        for projection in (self.down, self.up):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def forward(self, states: Tensor) -> Tensor:
        """What to add to the states.

        Args:
            states: (..., width), any floating type; computed in the parameters' type unless autocast says otherwise.

        Returns:
            (..., width), of the type of `states`.
        """
        hidden = self.dropout(self.activation(self.down(states.to(self.down.weight.dtype))))  # (..., dim)
        return (self.up(hidden) * self.scaling).to(states.dtype)

    @staticmethod
    def count(width: int, dim: int, bias: bool = True) -> int:
        """Number of parameters of one adapter."""
        return 2 * width * dim + (width + dim if bias else 0)
