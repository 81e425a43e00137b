"""HyperFormer: adapters whose weights a hyper-network makes from embeddings of the task, the layer and the site.

Mahabadi et al., "Parameter-efficient Multi-task Fine-tuning for Transformers via Shared Hypernetworks" (ACL 2021,
arXiv:2106.04489), in its form HyperFormer++: one hyper-network for all layers of a tower. Tasks exchange what they learn
through it and differ in their embedding alone. With `per_site` each site has a generator of its own instead of an
embedding, as in Sung et al., "VL-Adapter" (CVPR 2022).

Deviations: the generators of the up-projection start at zero, so that the adapted model equals the base at step 0. Those of
the down-projection are drawn so that it has the size of a plain adapter's. No layer norms are generated (the
paper's adapters have conditional ones; VL-Adapter's have none).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from vlatrain.adapters.base import Adapter, Call, Facts
from vlatrain.adapters.bottleneck import ACTIVATIONS, one_of


@dataclass(frozen=True)
class HyperformerOptions:
    """Options of `Hyperformer`.

    Attributes:
        dim: bottleneck width.
        activation: a key of `ACTIVATIONS`.
        dropout: drop rate in the bottleneck.
        scaling: factor on the output.
        task_embedding: width of each of the embeddings.
        hidden: width of the hyper-network's hidden layer.
        projected: width of what the weights are generated from.
        per_site: a generator for each site, and no embedding of it.
    """

    dim: int
    activation: str = "gelu"
    dropout: float = 0.0
    scaling: float = 1.0
    task_embedding: int = 64
    hidden: int = 128
    projected: int = 8
    per_site: bool = False


class Hyperformer(Adapter):
    """`x -> scaling * up(activation(down(x)))`, with both projections generated anew in each call.

    What is shared: the task's embedding by all places, a layer's by its sites, a site's by the layers of its tower, the
    hyper-network by all places of a tower, and by all tasks. With task-specific adapters (`adapter.by_task`) a task therefore
    adds one embedding and nothing else.

    Parameters, with e, h, p for `task_embedding`, `hidden`, `projected`, and a tower of L layers and S sites with adapters:
    `tasks * e` once, and for each tower

        (L + S) * e + (3 * e * h + h) + (h * p + p) + 2 * p + (p + 1) * (2 * width * dim + width + dim)

    and with `per_site`: `L * e`, `2 * e * h`, and the last summand S times.

    Raises:
        ValueError: an unknown activation, or a `projected` of which a layer norm leaves nothing.
    """

    Options = HyperformerOptions

    def __init__(self, facts: Facts, options: HyperformerOptions) -> None:
        super().__init__(facts, options)
        one_of("activation", options.activation, ACTIVATIONS)
        task_embedding, projected, per_site = options.task_embedding, options.projected, options.per_site
        if projected < 2:
            raise ValueError(f"projected={projected}: must be 2 or more")
        self.task, self.layer = Embedding(task_embedding), Embedding(task_embedding)
        self.site = None if per_site else Embedding(task_embedding)
        self.ties = {
            "task": ("layer", "tower", "site"),
            "layer": ("site", "task"),
            "network": ("layer", "site", "task"),
            "generator": ("layer", "task") if per_site else ("layer", "site", "task"),
        } | ({} if per_site else {"site": ("layer", "task")})  # fmt: skip
        self.network = nn.Sequential(
            nn.Linear((2 if per_site else 3) * task_embedding, options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, projected),
            nn.LayerNorm(projected),
        )
        self.generator = Generator(projected, facts.width, options.dim)
        self.activation = ACTIVATIONS[options.activation]()
        self.dropout = nn.Dropout(options.dropout)
        self.scaling = options.scaling

    def forward(self, states: Tensor, call: Call = Call()) -> Tensor:  # noqa: B008, an immutable default
        """What to add to the states: computed in the parameters' type unless autocast says otherwise."""
        down, down_bias, up, up_bias = self.generator(self.code())
        hidden = self.activation(linear(states.to(self.task.weight.dtype), down, down_bias))  # (..., dim)
        return (linear(self.dropout(hidden), up, up_bias) * self.scaling).to(states.dtype)

    def code(self) -> Tensor:
        """What this place's weights are generated from: (projected,)."""
        parts: list[Tensor] = [part.weight for part in (self.task, self.layer, self.site) if part is not None]
        code: Tensor = self.network(torch.cat(parts))
        return code


class Embedding(nn.Module):
    """The embedding of one task, layer or site, (width,): a module of its own, so that places can share it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))


class Generator(nn.Module):
    """A code (p,) as the weights and biases of an adapter: `(p + 1) * (2 * width * dim + width + dim)`."""

    def __init__(self, p: int, width: int, dim: int) -> None:
        super().__init__()
        self.width, self.dim = width, dim
        self.down, self.down_bias = nn.Linear(p, dim * width), nn.Linear(p, dim)
        self.up, self.up_bias = nn.Linear(p, width * dim), nn.Linear(p, width)
        for generated in (self.down, self.down_bias, self.up, self.up_bias):
            nn.init.zeros_(generated.weight)
            nn.init.zeros_(generated.bias)
        # a code's squares sum to p, after its norm; the weights then have a plain adapter's variance, 1 / (3 width)
        nn.init.normal_(self.down.weight, std=1 / math.sqrt(3 * width * p))

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Down (dim, width), its bias (dim,), up (width, dim), its bias (width,)."""
        down = self.down(code).view(self.dim, self.width)  # (dim * width,) -> (dim, width)
        up = self.up(code).view(self.width, self.dim)  # (width * dim,) -> (width, dim)
        return down, self.down_bias(code), up, self.up_bias(code)
