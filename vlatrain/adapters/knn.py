"""k nearest neighbours: a frozen vision tower's features of an image are compared with those of training samples; nothing trains.

The protocol of Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (DINO, ICCV 2021, arXiv:2104.14294,
appendix F.1), after Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018): features
are of unit length, the k most similar training samples vote for their classes, each with weight exp(similarity / temperature), and
the temperature is 0.07. They try k = 10, 20, 100 and 200, and report 20 for ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlatrain.adapters.base import Adapter, Call, Facts


@dataclass(frozen=True)
class KnnOptions:
    """Options of `Knn`.

    Attributes:
        k: neighbours that vote; all, where there are fewer samples.
        temperature: how much more the nearest count: less is sharper.
        samples: training samples that are kept, a seeded draw; 0: all.
    """

    k: int = 20
    temperature: float = 0.07
    samples: int = 0


class Knn(Adapter):
    """Takes the place of a head's logits: the logarithms of the classes' shares of the vote.

    Parameters: none. The samples are buffers, `samples * width` features and `samples * classes` votes, saved with the adapter.

    Raises:
        ValueError: a k, temperature or number of samples that makes no sense.
    """

    Options = KnnOptions
    at: ClassVar[str] = "features"
    residual: ClassVar[bool] = False
    reads_inputs: bool = True
    exclusive: ClassVar[bool] = True
    balanced: ClassVar[bool] = False  # its samples are those of the training data, each once

    def __init__(self, facts: Facts, options: KnnOptions) -> None:
        super().__init__(facts, options)
        for name, value in (("k", options.k), ("temperature", options.temperature)):
            if not value > 0:
                raise ValueError(f"{name}={value}: must be more than 0")
        if options.samples < 0:
            raise ValueError(f"samples={options.samples}: must be 0 (all) or more")
        self.size, self.k, self.temperature = options.samples, options.k, options.temperature
        self.keys: Tensor
        self.values: Tensor
        self.register_buffer("keys", torch.zeros(self.size, facts.inputs))
        self.register_buffer("values", torch.zeros(self.size, facts.width))

    @classmethod
    def takes(cls, role: str, options: Mapping[str, Any], site: str = "") -> bool:
        """The head's logits."""
        return role == "classes"

    def store(self, keys: Tensor, values: Tensor) -> None:
        """Take the samples.

        Args:
            keys: (samples, width) their unit features.
            values: (samples, classes) their classes, as one-hot rows.
        """
        self.keys.copy_(keys)
        self.values.copy_(values)

    def forward(self, states: Tensor, call: Call = Call()) -> Tensor:  # noqa: B008, an immutable default
        """Log-shares (B, classes) of the vote on features (B, width), which are the inputs of the head's linear layer."""
        assert call.inputs is not None
        likeness = normalize(call.inputs.to(self.keys.dtype), dim=-1) @ self.keys.T  # (B, samples)
        nearest = likeness.topk(min(self.k, likeness.shape[1]), dim=1)
        weights = (nearest.values / self.temperature).softmax(dim=1)  # (B, k)
        shares = (weights[..., None] * self.values[nearest.indices]).sum(dim=1)  # (B, k, classes) -> (B, classes)
        # a class without a vote is as good as impossible, and the logarithm finite
        return shares.clamp(min=torch.finfo(shares.dtype).tiny).log().to(states.dtype)
