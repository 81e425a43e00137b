"""AdapterFusion: trained adapters stay as they are, and an attention over what they put out learns to combine them.

Pfeiffer et al., "AdapterFusion: Non-Destructive Task Composition for Transfer Learning" (EACL 2021, arXiv:2005.00247). At each
point the query is the sub-layer's output, keys and values are the outputs of the sources, which are frozen.

Deviations:
- the query starts at zero, so that the start is the mean of the sources, whatever their number; in the paper it is drawn;
- queries and keys may be narrower than the states (`dim`), and the value matrix can be left out (`value="identity"`); the
  paper's are as wide as the states, with a value matrix that starts as the identity (plus noise that is left out here);
- the key has no bias: it would add the same to every source;
- what a source puts out is what it adds to the states; the paper's value holds its residual too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlatrain.adapters.base import Adapter, Call, Facts, options_of

VALUES = ("identity", "full")
MOMENTUM = 0.05  # of the running mean of the attention


@dataclass(frozen=True)
class FusionOptions:
    """Options of `Fusion`.

    Attributes:
        dim: width of query and key.
        value: `identity` or `full`.
        sources: for each source its `design`, `options` and `overrides`, the `points` where it has an adapter, and its `name`.
    """

    dim: int
    value: str = "identity"
    sources: Sequence[Mapping[str, Any]] = ()


class Fusion(Adapter):
    """`x -> sum_n a_n(x) V z_n`, where z_n is what source n adds to the states x, and a = softmax_n((Q x + q) . K z_n).

    A source that has no adapter at the point takes no part; of a single one the weight is 1, without query and key.

    Parameters: `2 * width * dim + dim` where two sources or more meet, and `width^2` for a full value matrix. The sources'
    own are frozen and saved with it.

    Attributes:
        sources: the frozen adapters, by their number among all sources.
        attention: what trains.

    Raises:
        ValueError: an unknown value, or a source that does not adapt the output of a sub-layer.
    """

    Options = FusionOptions
    frozen = ("sources",)

    def __init__(self, facts: Facts, options: FusionOptions) -> None:
        super().__init__(facts, options)
        if options.value not in VALUES:
            raise ValueError(f"value={options.value}: must be one of {', '.join(VALUES)}")
        point = f"{facts.tower}.{facts.index}.{facts.site}"
        here = {str(number): source for number, source in enumerate(options.sources) if point in source["points"]}
        self.sources = nn.ModuleDict({key: _built(source, point, facts) for key, source in here.items()})
        self.attention = Attention(facts.width, options.dim, len(self.sources), options.value)
        units: list[Any] = list(self.sources.values())
        self.reads_inputs = any(unit.reads == "input" or unit.reads_inputs for unit in units)
        self.reads_other = any(unit.reads_other for unit in units)
        self.sources.requires_grad_(False)

    def train(self, mode: bool = True) -> Fusion:
        """Train mode is for the attention: the sources keep to theirs, without dropout."""
        super().train(mode)
        self.sources.eval()
        return self

    def forward(self, states: Tensor, call: Call = Call()) -> Tensor:  # noqa: B008, an immutable default
        """What to add to the states."""
        outputs = [self._added(unit, states, call) for unit in self.sources.values()]
        found: Tensor = self.attention(states, torch.stack(outputs, dim=-2)).to(states.dtype)  # of (B, L, S, width)
        return found

    def _added(self, unit: Any, states: Tensor, call: Call) -> Tensor:
        read = call.inputs if unit.reads == "input" else states
        found = unit(read, call)
        added: Tensor = found if unit.residual else found - read
        return added

    @staticmethod
    def count(width: int, dim: int, value: str = "identity", sources: int = 2) -> int:
        """Number of trained parameters at a point."""
        return (2 * width * dim + dim if sources > 1 else 0) + (width * width if value == "full" else 0)


class Attention(nn.Module):
    """The weights of the sources, for each token.

    Attributes:
        usage: (S,) running mean of the weights in training, over tokens (padding too) and steps: what each source is used for.

    Args:
        width: width of the states.
        dim: width of query and key.
        sources: number of sources S.
        value: `identity` or `full`.
    """

    usage: Tensor

    def __init__(self, width: int, dim: int, sources: int, value: str) -> None:
        super().__init__()
        several = sources > 1
        self.query = nn.Linear(width, dim) if several else None
        self.key = nn.Linear(width, dim, bias=False) if several else None
        self.value = nn.Linear(width, width, bias=False) if value == "full" else None
        self.register_buffer("usage", torch.full((sources,), 1 / max(1, sources)))
        if self.query is not None:
            nn.init.zeros_(self.query.weight)
            nn.init.zeros_(self.query.bias)
        if self.value is not None:
            nn.init.eye_(self.value.weight)

    def forward(self, states: Tensor, outputs: Tensor) -> Tensor:
        """The weighted sum of the sources' outputs.

        Args:
            states: (B, L, width).
            outputs: (B, L, S, width) what each source adds.

        Returns:
            (B, L, width).
        """
        if self.query is None or self.key is None:
            mixed = outputs[..., 0, :]
        else:
            weights = self.weights(states, outputs)  # (B, L, S)
            if self.training:
                used = weights.detach().float().mean(dim=tuple(range(weights.dim() - 1)))
                self.usage.lerp_(used.to(self.usage.dtype), MOMENTUM)
            mixed = (weights.unsqueeze(-1) * outputs).sum(-2)  # (B, L, S, 1) * (B, L, S, width) -> (B, L, width)
        return mixed if self.value is None else self.value(mixed.to(self.value.weight.dtype))

    def weights(self, states: Tensor, outputs: Tensor) -> Tensor:
        """The weight of each source, (B, L, S), from states (B, L, width) and outputs (B, L, S, width); needs two sources."""
        assert self.query is not None
        assert self.key is not None
        query = self.query(states.to(self.query.weight.dtype)).unsqueeze(-2)  # (B, L, 1, dim)
        keys = self.key(outputs.to(self.key.weight.dtype))  # (B, L, S, dim)
        weights: Tensor = (query * keys).sum(-1).softmax(-1)
        return weights


def _built(source: Mapping[str, Any], point: str, facts: Facts) -> Adapter:
    """A source's adapter at a point, as it was built in its own run."""
    from vlatrain.adapters import DESIGNS  # which holds this design too

    if source["design"] not in DESIGNS:
        raise ValueError(
            f"source {source['name']}: unknown design {source['design']!r}; there are {', '.join(DESIGNS)}"
        )
    design = DESIGNS[source["design"]]
    if design.at != "site":
        raise ValueError(f"source {source['name']}: {source['design']} does not adapt the output of a sub-layer")
    layers = [int(other.split(".")[1]) for other in source["points"] if other.startswith(f"{facts.tower}.")]
    own = replace(facts, first=facts.index == min(layers), last=facts.index == max(layers), tasks=())
    unit = design(own, options_of(design, {**source["options"], **source["overrides"].get(point, {})}))
    unit.resolve()
    return unit
