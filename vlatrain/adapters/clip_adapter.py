"""CLIP-Adapter: a small network on the features of image and text, behind both towers.

Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters" (IJCV 2024, arXiv:2110.04544): the features f become
f' = a A(f) + (1 - a) f, with a ratio a and two linear layers A(f) = up(relu(down(f))).

Features are normalised before they are compared, so only the direction of f' counts, which is that of f + a / (1 - a) A(f): this is
what is computed here. Deviation: the up-projection starts at zero, so the adapted model starts as the frozen one; hence no second
ReLU behind it, which the authors' code has and which would let no gradient through at zero. Their network is a quarter as wide
as the features (`dim`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlatrain.adapters.base import Facts
from vlatrain.adapters.bottleneck import Bottleneck, BottleneckOptions, one_of

FEATURES = ("image", "text")


@dataclass(frozen=True)
class ClipAdapterOptions:
    """Options of `ClipAdapter`.

    Attributes:
        dim: width between the layers.
        activation: see `Bottleneck`.
        dropout: see `Bottleneck`.
        bias: whether the layers have biases.
        init: see `Bottleneck`.
        init_std: see `Bottleneck`.
        features: which are adapted: image, text or both.
        ratio: the paper's a, between 0 and 1.
    """

    dim: int
    activation: str = "relu"
    dropout: float = 0.0
    bias: bool = False
    init: str = "zero"
    init_std: float = 0.02
    features: Sequence[str] = ("image",)
    ratio: float = 0.2


class ClipAdapter(Bottleneck):
    """`f -> a / (1 - a) up(activation(down(f)))`, added to the features.

    Parameters, for each of image and text that it adapts: `2 * width * dim`, with biases `width + dim` more. 131,072 for CLIP's
    512 and dim 128.

    Raises:
        ValueError: an option that makes no sense.
    """

    Options = ClipAdapterOptions
    at: ClassVar[str] = "features"

    def __init__(self, facts: Facts, options: ClipAdapterOptions) -> None:
        ratio = options.ratio
        if not options.features:
            raise ValueError(f"features=[]: must name at least one of {', '.join(FEATURES)}")
        for name in options.features:
            one_of("features", name, FEATURES)
        if not 0 < ratio < 1:
            raise ValueError(f"ratio={ratio}: must be more than 0 and less than 1")
        shared = {name: value for name, value in vars(options).items() if name not in ("features", "ratio")}
        super().__init__(facts, BottleneckOptions(**shared, scaling=ratio / (1 - ratio)))

    @classmethod
    def takes(cls, role: str, options: Mapping[str, Any], site: str = "") -> bool:
        """The features that `features` names."""
        return role in options.get("features", ("image",))
