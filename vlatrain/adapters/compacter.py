"""Compacter: bottleneck adapters whose projections are sums of Kronecker products, W = sum over n terms of A_i (x) B_i.

Mahabadi et al., "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers" (NeurIPS 2021, arXiv:2106.04647). The A_i are one
small tensor that all adapters of the model share, down- and up-projections alike; the B_i are each projection's own, of
rank one. Without sharing, and with full B_i, it is `bottleneck` with `projection=phm`.

Deviations: the up-projection's B_i start at zero, so that the adapted model equals the base at step 0; the paper's start
near it. The A_i are drawn from N(0, 1 / n) instead of N(0, 0.01^2), which would make the projections vanish.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlatrain.adapters.base import Facts, borrow
from vlatrain.adapters.bottleneck import Bottleneck, BottleneckOptions, PlainOptions
from vlatrain.adapters.projections import Rule


@dataclass(frozen=True)
class CompacterOptions(PlainOptions):
    """Options of `Compacter`; `dim` is a multiple of `terms`.

    Attributes:
        rank: of the B_i; 0: full.
        terms: number n of terms.
    """

    rank: int = 1
    terms: int = 4


class Compacter(Bottleneck):
    """A bottleneck with PHM projections that share the A_i, `rule`, between all places.

    Parameters: for each adapter `2 * rank * (width + dim)`, or `2 * width * dim / terms` with rank 0, and `width + dim` for
    biases; once for all of them `terms^3`. With rank 1 and biases in L adapters: `3 * L * (width + dim) + terms^3`.

    Raises:
        ValueError: an unknown activation, init or placement, or a width that is no multiple of `terms`.
    """

    Options = CompacterOptions
    ties = {"rule": ("layer", "tower", "site")}

    def __init__(self, facts: Facts, options: CompacterOptions) -> None:
        super().__init__(facts, BottleneckOptions(**vars(options), projection="phm"))
        self.rule = Rule(options.terms)
        self.rule.start()
        self.resolve()

    def resolve(self) -> None:
        """Both halves use the rule, whether it is this adapter's or borrowed."""
        for half in (self.down, self.up):
            borrow(half, "projection.rule", self.rule)
