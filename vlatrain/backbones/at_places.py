"""Logits of some states only: a vocabulary is wide, and of a conversation few tokens are learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def logits_at(head: nn.Module, places: Tensor | None) -> Iterator[None]:
    """While it is entered, a model makes logits only at some places of its rows.

    Args:
        head: what makes the model's logits (B, L, vocabulary) of its last states (B, L, width).
        places: (B, n) of each row, so that the logits are (B, n, vocabulary); None: all, as ever.
    """

    def chosen(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        rows = torch.arange(len(args[0]), device=args[0].device)[:, None]
        return (args[0][rows, places], *args[1:])

    hook = None if places is None else head.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        if hook:
            hook.remove()
