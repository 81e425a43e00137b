"""Tip-Adapter: a cache of training samples that corrects the image's features, without training or as its start.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification" (ECCV 2022, arXiv:2207.09519). A cache holds
image features of training samples as keys, and what they are as values; an image is compared with the keys, exp(-beta (1 - f K^T)),
and gets the values' mixture, weighted by alpha. Tip-Adapter-F then trains the keys.

Deviations:
- what is added goes to the image's features, f' = f + alpha A V, not to the class scores. In classification, with class features W,
  a value is the vector v whose scores v W^T are the sample's one-hot label, so that f' W^T are the paper's scores but for the
  length of f'. Retrieval has no classes; there a value is the text features of a caption of the sample;
- the affinities are divided by their sum, A = softmax(beta f K^T), so that alpha means the same for every size of the cache.

f is of unit length here. The design sits in front of the features' normalisation, so what it adds has the length of the features.

It does not start as the frozen model: the cache is filled from training samples (`fill`) before the first step. An empty one adds
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlatrain.adapters.base import Adapter, Call, Facts


@dataclass(frozen=True)
class TipAdapterOptions:
    """Options of `TipAdapter`.

    Attributes:
        size: training samples in the cache; with classes, as many of each: the paper's K shots of N classes are `size = N K`.
        alpha: weight of what the cache says.
        beta: sharpness: how much more the nearest keys count.
        trains: whether the keys train (Tip-Adapter-F).
    """

    size: int = 512
    alpha: float = 1.0
    beta: float = 20.0
    trains: bool = False


class TipAdapter(Adapter):
    """`x -> |x| alpha softmax(beta f K^T) V` with f = x / |x|, added to the image's features x.

    Parameters: none, or `size * width` (the keys) with `trains`: 262,144 for CLIP's 512 and 512 samples. What does not train
    is a buffer, saved with the adapter.

    Raises:
        ValueError: a size, alpha or beta that is not positive.
    """

    Options = TipAdapterOptions
    at: ClassVar[str] = "features"
    balanced: ClassVar[bool] = True  # as many samples of each class

    def __init__(self, facts: Facts, options: TipAdapterOptions) -> None:
        super().__init__(facts, options)
        width, size, alpha, beta = facts.width, options.size, options.alpha, options.beta
        for name, value in (("size", size), ("alpha", alpha), ("beta", beta)):
            if not value > 0:
                raise ValueError(f"{name}={value}: must be more than 0")
        self.size, self.alpha, self.beta = size, alpha, beta
        self.keys: Tensor
        if options.trains:
            self.keys = nn.Parameter(torch.zeros(size, width))
        else:
            self.register_buffer("keys", torch.zeros(size, width))
        self.values: Tensor
        self.register_buffer("values", torch.zeros(size, width))

    @classmethod
    def takes(cls, role: str, options: Mapping[str, Any], site: str = "") -> bool:
        """The image's features."""
        return role == "image"

    def store(self, keys: Tensor, values: Tensor) -> None:
        """Fill the cache.

        Args:
            keys: (size, width) unit image features of training samples.
            values: (size, width) what is added to features like them.
        """
        with torch.no_grad():
            self.keys.copy_(keys)
            self.values.copy_(values)

    def forward(self, states: Tensor, call: Call = Call()) -> Tensor:  # noqa: B008, an immutable default
        """What the cache says of image features (B, width)."""
        features = states.to(self.keys.dtype)
        likeness = normalize(features, dim=-1) @ self.keys.T  # (B, size)
        said = (self.beta * likeness).softmax(dim=-1).to(self.values.dtype) @ self.values  # (B, width)
        found: Tensor = (features.norm(dim=-1, keepdim=True) * self.alpha * said).to(states.dtype)
        return found
