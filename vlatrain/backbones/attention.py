"""What the families' fast attention has in common: masks for torch's fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """An additive mask as the kernel takes it, in the queries' type: a number that this does not have would be infinite, and a
    whole row of it NaN."""
    return None if mask is None else mask.clamp(min=torch.finfo(dtype).min).to(dtype)
