"""What the adapters of a model must know of the call they are in, and cannot see from their place.

A model has one context, which all its adapters share, and of it each thread has a part of its own: the call that it makes. Whoever
runs the model sets that for the time of a call: the backbone hands states of the other modality to towers that get none
(`provide`), the task says its name (`for_task`), a batch of several adapters says which row is whose (`rows`).

The part of a call is a `threading.local` and no `contextvars.ContextVar`: torch.compile looks into the one, and breaks the graph at
the other (torch 2.13). A thread that somebody else starts, as autograd does for a GPU's backward pass, has none; what it computes
anew brings its own along (`recomputed`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

ATTRIBUTE = "_vlatrain_context"
BASE = "__base__"  # the name of no adapter, as in PEFT
LEFT = "left."  # what the names of `exported` start with


class ThisThread(threading.local):
    """Values that every thread has for itself; a copy has none of them, as tensors with a graph cannot be copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class CallState(ThisThread):
    """The call that a thread is in.

    Attributes:
        handed: by tower, states (B, S, width) of the other modality and their mask (B, S).
        heard: the same of the layer at work, where it is called with them.
        task: name of the task; empty if there is only one.
        rows: adapter of each row of the batch, or several with their weights; None: the active ones for all.
        repeats: how many rows of a tower's batch there may be for one of these; None: any number.
        dropped: adapters in so many of the lowest layers of each tower are left out; None: as the model has it.
        carried: by tower and adapter, what its modules hand from layer to layer; of the call a tower is in.
        exported: by adapter and tower, what its modules have left to those of towers to come (of the last one to do so).
    """

    def __init__(self) -> None:
        self.handed: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.heard: tuple[Tensor | None, Tensor | None] = (None, None)
        self.task = ""
        self.rows: list[str | Mapping[str, float]] | None = None
        self.repeats: frozenset[int] | None = None
        self.dropped: int | None = None
        self.carried: dict[tuple[str, str], dict[str, Any]] = {}
        self.exported: dict[str, dict[str, Tensor]] = {}


@dataclass
class Context:
    """The context of a model.

    Attributes:
        call: of the call that the asking thread is in.
        dropped: adapters in so many of the lowest layers of each tower are left out, where a call does not say otherwise.
        readers: the sites with adapters that read states of the other modality.
        trunk: names of the trunk's own parameters that train in place.
    """

    call: CallState = field(default_factory=CallState)
    dropped: int = 0
    readers: list[Any] = field(default_factory=list)
    trunk: list[str] = field(default_factory=list)

    @property
    def without(self) -> int:
        """In how many of the lowest layers adapters are left out now."""
        return self.dropped if self.call.dropped is None else self.call.dropped

    def __deepcopy__(self, memo: dict[int, Any]) -> Context:
        """A copy, of a call that sets the same; not with what is of a forward pass."""
        memo[id(self)] = copied = Context()
        for name in ("dropped", "readers", "trunk"):
            setattr(copied, name, copy.deepcopy(getattr(self, name), memo))
        for name in ("task", "rows", "repeats", "dropped"):
            setattr(copied.call, name, copy.deepcopy(getattr(self.call, name), memo))
        return copied


def context_of(model: nn.Module) -> Context:
    """The context of a model, PEFT's wrapper around it or not; made when first asked for."""
    while callable(inner := getattr(model, "get_base_model", None)):
        model = inner()
    if ATTRIBUTE not in model.__dict__:
        model.__dict__[ATTRIBUTE] = Context()
    context: Context = model.__dict__[ATTRIBUTE]
    return context


def reads_other(model: nn.Module, tower: str) -> bool:
    """Whether an adapter at work in a tower reads states of the other modality: only then need they be handed to it."""
    return any(site.tower == tower and site.reads_other for site in context_of(model).readers)


@contextmanager
def setting(model: nn.Module, **values: Any) -> Iterator[None]:
    """Set attributes of the calls that this thread makes of a model; whatever happens, they are as before afterwards."""
    call = context_of(model).call
    before = {name: getattr(call, name) for name in values}
    vars(call).update(values)
    try:
        yield
    finally:
        vars(call).update(before)


@contextmanager
def provide(model: nn.Module, tower: str, states: Tensor, mask: Tensor | None = None) -> Iterator[None]:
    """Hand a tower the states of the other modality.

    Args:
        model: the model.
        tower: the tower that reads them.
        states: (B, S, width), a row for each row of the tower's batch (or for so many of its rows, one after the other).
        mask: (B, S) 1 for those that may be attended to; None: all.

    Raises:
        ValueError: the mask is of other states.
    """
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(f"{tower}: states {tuple(states.shape)} are handed on with a mask {tuple(mask.shape)}")
    with setting(model, handed={**context_of(model).call.handed, tower: (states, mask)}):
        yield


def for_task(model: nn.Module, name: str) -> AbstractContextManager[None]:
    """Say which task the calls are for: task-specific adapters go by it."""
    return setting(model, task=name)


def rows(
    model: nn.Module, adapters: Sequence[str | Mapping[str, float]], repeats: frozenset[int] | None = None
) -> AbstractContextManager[None]:
    """Mix adapters in a batch.

    Args:
        model: the model.
        adapters: for each row the name of its adapter, `__base__` for none; or by name the weights of several, with which what each
            of them adds is added. A batch of k times as many rows (beams) has k rows, one after the other, for each.
        repeats: the k that there may be; None: any.
    """
    return setting(model, rows=list(adapters), repeats=repeats)


def rows_of_images(model: nn.Module, counts: Sequence[int]) -> AbstractContextManager[None]:
    """Let a tower whose batch has a row for each image know the adapter of each.

    Args:
        model: the model.
        counts: how many images each row has; none: one each.
    """
    if not counts or (given := context_of(model).call.rows) is None:
        return nullcontext()
    return setting(model, rows=[name for name, count in zip(given, counts, strict=True) for _ in range(count)])


def exported(model: nn.Module) -> dict[str, Tensor]:
    """What adapters of the towers that have run leave to those of towers to come, by name, each a row for each row of the batch.

    What goes on with other rows, or later, than those that the towers ran for takes this along and gives it back by `bring`.
    """
    found = context_of(model).call.exported
    return {f"{LEFT}{adapter}.{tower}": states for adapter, own in found.items() for tower, states in own.items()}


@contextmanager
def restore(model: nn.Module, values: Mapping[str, Any]) -> Iterator[None]:
    """Give back what `exported` returned, its rows picked or repeated, for the time of a call; other values are no matter."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, states in values.items():
        if name.startswith(LEFT):
            adapter, _, tower = name.removeprefix(LEFT).partition(".")
            found.setdefault(adapter, {})[tower] = states
    with setting(model, **({"exported": found} if found else {})):
        yield


def recomputed(model: nn.Module) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """For `context_fn` of `torch.utils.checkpoint`: a call is recomputed in the context it was made in, which by the time of the
    backward pass may be over.

    Args:
        model: the model.
    """
    call = context_of(model).call
    return lambda: (nullcontext(), _Again(call))


class _Again:
    """The call as it is now, again: as often as it is entered, in whatever thread."""

    def __init__(self, call: CallState) -> None:
        self.call, self.then = call, dict(vars(call))
        self.now = self.then

    def __enter__(self) -> None:
        self.now = dict(vars(self.call))  # of the thread that enters
        vars(self.call).update(self.then)

    def __exit__(self, *error: object) -> None:
        vars(self.call).update(self.now)
