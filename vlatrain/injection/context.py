"""What the adapters of a model must know of the call they are in, and cannot see from their place.

A model has one context, which all its adapters share. Whoever runs the model sets it for the time of a call: the backbone
hands states of the other modality to towers that get none (`hand`), the task says its name (`for_task`), a batch of several
adapters says which row is whose (`rows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

ATTRIBUTE = "_vlatrain_context"
BASE = "__base__"  # the name of no adapter, as in PEFT


@dataclass
class Context:
    """The context of a model.

    Attributes:
        handed: by tower, states (B, S, width) of the other modality and their mask (B, S).
        task: name of the task; empty if there is only one.
        rows: adapter of each row of the batch; None: the active ones for all.
        dropped: adapters in so many of the lowest layers of each tower are left out.
    """

    handed: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    task: str = ""
    rows: list[str] | None = None
    dropped: int = 0


def context_of(model: nn.Module) -> Context:
    """The context of a model, PEFT's wrapper around it or not; made when first asked for."""
    while callable(inner := getattr(model, "get_base_model", None)):
        model = inner()
    if ATTRIBUTE not in model.__dict__:
        model.__dict__[ATTRIBUTE] = Context()
    return model.__dict__[ATTRIBUTE]


@contextmanager
def hand(model: nn.Module, tower: str, states: Tensor, mask: Tensor | None = None) -> Iterator[None]:
    """Hand a tower the states of the other modality.

    Args:
        model: the model.
        tower: the tower that reads them.
        states: (B, S, width), a row for each row of the tower's batch (or for so many of its rows, one after the other).
        mask: (B, S) 1 for those that may be attended to; None: all.
    """
    context = context_of(model)
    context.handed[tower] = (states, mask)
    try:
        yield
    finally:
        del context.handed[tower]


@contextmanager
def for_task(model: nn.Module, name: str) -> Iterator[None]:
    """Say which task the calls are for: task-specific adapters go by it."""
    context = context_of(model)
    before, context.task = context.task, name
    try:
        yield
    finally:
        context.task = before


@contextmanager
def rows(model: nn.Module, adapters: Sequence[str] | None) -> Iterator[None]:
    """Mix adapters in a batch.

    Args:
        model: the model.
        adapters: for each row the name of its adapter, `__base__` for none; None changes nothing. A batch of k times as many
            rows (beams) has k rows, one after the other, for each.
    """
    context = context_of(model)
    before = context.rows
    context.rows = list(adapters) if adapters is not None else before
    try:
        yield
    finally:
        context.rows = before
