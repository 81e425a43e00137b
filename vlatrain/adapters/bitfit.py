"""BitFit: only the biases train. Ben Zaken, Goldberg and Ravfogel, "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models" (ACL 2022, arXiv:2106.10199).

A vector is added to the output of each linear layer and norm, which is the same as training the bias that is there, and leaves
the frozen weights alone.

Deviations: the bias of attention's keys is left out, as it adds the same to all the scores of a query, which their softmax does
not see (of a fused `qkv` the whole bias is there; `keys` has it anyway, as in published counts); a layer without a bias gets one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlatrain.adapters.base import Adapter, Call, Facts

OUTSIDE = "outside"  # the site of modules that are in no layer


@dataclass(frozen=True)
class BitFitOptions:
    """Options of `BitFit`.

    Attributes:
        keys: attention's keys have one too.
        outside: so have the modules outside the layers: final norms, norms of embeddings, the head.
    """

    keys: bool = False
    outside: bool = False


class BitFit(Adapter):
    """`x + b`.

    Parameters: the width of the module's output. So for width w and feed-forward width f: `4 w` in attention (query, value, out,
    norm; with a fused qkv `5 w`), `4 w` in cross-attention, `f + 2 w` in the feed-forward.
    """

    Options = BitFitOptions
    at: ClassVar[str] = "modules"

    @classmethod
    def takes(cls, role: str, options: Mapping[str, Any], site: str = "") -> bool:
        """Modules in the layers but for attention's key, unless the options say otherwise."""
        return (role != "key" or options.get("keys", False)) and (site != OUTSIDE or options.get("outside", False))

    def __init__(self, facts: Facts, options: BitFitOptions) -> None:
        super().__init__(facts, options)
        self.bias = nn.Parameter(torch.zeros(facts.width))

    def change_of(self, module: nn.Module) -> Mapping[str, Tensor] | None:
        """The bias, of a module that has one."""
        return None if getattr(module, "bias", None) is None else {"bias": self.bias}

    def forward(self, states: Tensor, call: Call = Call()) -> Tensor:  # noqa: B008, an immutable default
        """The bias, (width,)."""
        return self.bias.to(states.dtype)
