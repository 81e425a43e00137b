"""The linear maps of an adapter, down to the bottleneck and up again: dense, or with fewer parameters.

- `dense`: a linear layer.
- `low_rank`: the product of two thin ones.
- `phm`: parameterised hypercomplex multiplication (Zhang et al., "Beyond Fully-Connected Layers with Quaternions", ICLR 2021;
  as used by Compacter, Mahabadi et al., NeurIPS 2021): W = sum_i A_i (x) B_i, a sum of Kronecker products.
- `lora`: a fixed, drawn matrix, and LoRA (Hu et al., ICLR 2022) that changes it: LoRA inside an adapter.
- `columns`: a dense one, some of whose outputs may be shared (Jiang et al., "Cross-Modal Adapter", 2022).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

KINDS = ("dense", "low_rank", "phm", "lora")


def draw(weight: Tensor, init: str, std: float, up: bool) -> None:
    """Start a projection's weight, in place.

    Args:
        weight: (out, in).
        init: `zero`: an up-projection is zero and a down-projection drawn as LoRA's A is, by its width; `normal`: N(0, std).
        std: standard deviation with `normal`.
        up: whether it is an up-projection.
    """
    if init == "normal":
        nn.init.normal_(weight, std=std)
    elif up:
        nn.init.zeros_(weight)
    else:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # U(-b, b) with b = 1 / sqrt(in)


def autocasts(states: Tensor) -> bool:
    """Whether autocast chooses the type of what is computed from these states."""
    return not states.is_meta and torch.is_autocast_enabled(states.device.type)


class Dense(nn.Linear):
    """A linear layer: `in * out`, and `out` for the bias.

    Attributes:
        lowered: weight and bias in autocast's type, for whoever casts those of many layers together; None: autocast casts them.
    """

    lowered: tuple[Tensor, Tensor | None] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        weight, bias = self.lowered if self.lowered and autocasts(input) else (self.weight, self.bias)
        return linear(input, weight, bias)

    def start(self, init: str, std: float, up: bool) -> None:
        """Draw it; the bias is zero."""
        draw(self.weight, init, std, up)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class LowRank(nn.Module):
    """Two thin linear maps: `rank * (in + out)`, and `out` for the bias."""

    def __init__(self, inputs: int, outputs: int, bias: bool, rank: int) -> None:
        super().__init__()
        self.first = Dense(inputs, rank, bias=False)
        self.second = Dense(rank, outputs, bias=bias)

    def start(self, init: str, std: float, up: bool) -> None:
        """Draw both; an up-projection is zero by its second."""
        self.first.start(init, std, up=False)
        self.second.start(init, std, up=up)

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        found: Tensor = self.second(self.first(states))
        return found


class Phm(nn.Module):
    """W = sum over n terms of A_i (x) B_i: `n^3 + in * out / n`, and `out` for the bias; with a rank r, B_i = s_i t_i and
    `n^3 + r * (in + out)`.

    Attributes:
        rule: (n, n, n) the A_i. `Compacter` shares it between all places.

    Args:
        inputs: width of the input, a multiple of n.
        outputs: width of the output, a multiple of n.
        bias: whether there is one.
        n: number of terms.
        rank: rank of the B_i; 0: full.

    Raises:
        ValueError: a width is no multiple of n.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, n: int, rank: int = 0) -> None:
        super().__init__()
        if inputs % n or outputs % n:
            raise ValueError(f"the widths {inputs} and {outputs} must be multiples of n={n}")
        self.rule = Rule(n)
        shape = (n, outputs // n, inputs // n)
        self.left: nn.Parameter | None = None
        self.right: nn.Parameter | None = None
        self.full: nn.Parameter | None = None
        if rank:
            self.left = nn.Parameter(torch.empty(n, shape[1], rank))
            self.right = nn.Parameter(torch.empty(n, rank, shape[2]))
        else:
            self.full = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def start(self, init: str, std: float, up: bool) -> None:
        """The rule from N(0, 1 / n), so that W has the size of B; of an up-projection B is zero, else drawn by the width."""
        self.rule.start()
        bound = std * math.sqrt(3) if init == "normal" else self._bound()
        for factor in (self.left, self.right, self.full):
            if factor is not None:
                nn.init.uniform_(factor, -bound, bound)
        if up and init == "zero":
            nn.init.zeros_(self.full if self.full is not None else self.left)  # type: ignore[arg-type]

    def _bound(self) -> float:
        n = len(self.rule.weight)
        inputs = n * (self.right if self.full is None else self.full).shape[-1]  # type: ignore[union-attr]
        if self.full is not None:
            return 1 / math.sqrt(inputs)
        bound: float = (1 / (inputs * self.left.shape[-1])) ** 0.25  # type: ignore[union-attr]
        return bound

    def matrix(self) -> Tensor:
        """W, (out, in)."""
        blocks = self.full if self.full is not None else self.left @ self.right  # type: ignore[operator]
        n, rows, columns = blocks.shape
        # (n, n, n) x (n, out / n, in / n) -> (n, out / n, n, in / n) -> (out, in)
        return torch.einsum("iab,irc->arbc", self.rule.weight, blocks).reshape(n * rows, n * columns)

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(states, self.matrix(), self.bias)


class Rule(nn.Module):
    """The A_i of `Phm`, a module of its own so that it can be shared: n^3."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, n, n))

    def start(self) -> None:
        """N(0, 1 / n)."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(len(self.weight)))


class LoraDense(nn.Module):
    """A fixed, drawn matrix that LoRA changes: `rank * (in + out)` trained, and `out` for the bias."""

    def __init__(self, inputs: int, outputs: int, bias: bool, rank: int) -> None:
        super().__init__()
        self.register_buffer("base", torch.empty(outputs, inputs))
        self.first = Dense(inputs, rank, bias=False)
        self.second = Dense(rank, outputs, bias=bias)

    def start(self, init: str, std: float, up: bool) -> None:
        """The fixed matrix as the dense one's; LoRA's change is zero."""
        draw(self.base, init, std, up)  # type: ignore[arg-type]
        self.first.start("zero", std, up=False)
        self.second.start("zero", std, up=True)

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        found: Tensor = linear(states, self.base) + self.second(self.first(states))  # type: ignore[arg-type]
        return found


class Columns(nn.Module):
    """A dense map whose last outputs are a module of their own, `common`, that places can share."""

    def __init__(self, inputs: int, outputs: int, bias: bool, columns: int) -> None:
        super().__init__()
        if not 0 < columns < outputs:
            raise ValueError(f"columns={columns}: must be between 1 and {outputs - 1}, the width less one")
        self.own = Dense(inputs, outputs - columns, bias=bias)
        self.common = Dense(inputs, columns, bias=bias)

    def start(self, init: str, std: float, up: bool) -> None:
        """Draw both."""
        self.own.start(init, std, up)
        self.common.start(init, std, up)

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) -> (..., out): its own outputs, then the common ones."""
        return torch.cat([self.own(states), self.common(states)], dim=-1)


def projection(
    kind: str, inputs: int, outputs: int, bias: bool, rank: int = 8, terms: int = 4, columns: int = 0
) -> nn.Module:
    """A projection of a kind.

    Args:
        kind: one of `KINDS`.
        inputs: width of the input.
        outputs: width of the output.
        bias: whether it has one.
        rank: of `low_rank` and `lora`; of `phm`, where 0 is full.
        terms: of `phm`.
        columns: of `dense`: outputs that are a module of their own; 0: none.

    Raises:
        ValueError: an unknown kind, or sizes that do not go with it.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown projection {kind!r}; there are {', '.join(KINDS)}")
    if columns and kind != "dense":
        raise ValueError(f"sharing columns needs projection=dense, not {kind}")
    if kind in ("low_rank", "lora") and rank < 1:
        raise ValueError(f"rank={rank}: must be 1 or more")
    if columns:
        return Columns(inputs, outputs, bias, columns)
    if kind == "dense":
        return Dense(inputs, outputs, bias=bias)
    if kind == "phm":
        return Phm(inputs, outputs, bias, terms, rank)
    return (LowRank if kind == "low_rank" else LoraDense)(inputs, outputs, bias, rank)
