"""Scores are computed in fp32, whatever the model around them is computed in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """The context in which autocast leaves the types of operations on a device as they are.

    bf16 has 8 significant bits: of cosines near 1 it tells apart no closer than 0.004, so that a ranking is full of ties.
    """
    if not torch.amp.is_autocast_available(device.type):  # the meta device, which has none to switch off
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
