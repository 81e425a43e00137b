"""What the families' fast attention has in common: masks for torch's fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlatrain.adapters.projections import autocasts


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """An additive mask as the kernel takes it, in the queries' type: a number that this does not have would be infinite, and a
    whole row of it NaN."""
    if mask is None:
        return None
    least, made = torch.finfo(dtype).min, mask.to(dtype)
    return made.clamp(min=least) if torch.finfo(mask.dtype).min < least else made


def masks_once(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pre-hook of a stack of layers that is called with states: its masks are `additive` ones in the type that all the layers'
    products have, lest each layer make its own."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    dtype = torch.get_autocast_dtype(states.device.type) if autocasts(states) else states.dtype
    masks = {name: mask for name, mask in kwargs.items() if name in ("attention_mask", "encoder_attention_mask")}
    return args, kwargs | {name: additive(mask, dtype) for name, mask in masks.items()}
