"""A tower's frozen prefix: kept while it is computed, or put back without being computed.

What comes before the first trainable thing of a tower is a pure function of the sample. Its outcome, the states that leave the
last frozen layer, can be kept, and given back the next time the sample comes: then the embeddings and the frozen layers do
nothing, and the rest of the tower goes on as always, hooks included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlatrain.config.model import TowerConfig


@dataclass(frozen=True)
class Boundary:
    """What of a tower is frozen.

    Attributes:
        tower: its name.
        layers: so many of its lowest layers, at least one, and all that comes before them.
        taps: the layers whose outputs are needed: the last frozen one, or (ladder side-tuning) all of them.
    """

    tower: str
    layers: int
    taps: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it is shown: `vision.0-7`."""
        return f"{self.tower}.0-{self.layers - 1}" + (" (every layer)" if len(self.taps) > 1 else "")


@dataclass
class CachedStates:
    """What was kept of a call: states (B, taps, L, width), and whether the layers return tuples."""

    states: Tensor
    in_tuple: bool


class Enough(Exception):  # noqa: N818, no error
    """Everything that was to be kept has been computed."""


@dataclass
class PrefixReplay:
    """What a backbone keeps of its towers, and puts back. It is at work in the calls that `around` is entered for.

    Attributes:
        boundaries: of the towers that are kept.
        in_tuple: by tower, whether its layers return tuples, for the states that are put back.
    """

    boundaries: dict[str, Boundary]
    in_tuple: dict[str, bool]
    wanted: Sequence[str] = ()
    recorded: dict[str, CachedStates] = field(default_factory=dict)

    @contextmanager
    def recording(self, towers: Sequence[str]) -> Iterator[dict[str, CachedStates]]:
        """Keep what leaves the frozen layers of some towers: in the end it is in what this gives. Raises `Enough` inside."""
        self.wanted, self.recorded = towers, {}
        try:
            yield self.recorded
        finally:
            self.wanted = ()

    def around(
        self, model: nn.Module, tower: TowerConfig, name: str, states: Tensor | None
    ) -> AbstractContextManager[Any]:
        """The context of one call of a tower: states (B, taps, L, width) are put back; None: recorded, if asked for."""
        if states is not None:
            return replaying(model, tower, self.boundaries[name], CachedStates(states, self.in_tuple[name]))
        return self._recording(model, tower, name) if name in self.wanted else nullcontext()

    @contextmanager
    def _recording(self, model: nn.Module, tower: TowerConfig, name: str) -> Iterator[None]:
        boundary, layers, seen = self.boundaries[name], model.get_submodule(tower.layers), {}

        def keep(number: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen[number] = output
            if number != boundary.taps[-1]:
                return
            in_tuple = isinstance(output, tuple)
            found = [seen[tap][0] if in_tuple else seen[tap] for tap in boundary.taps]
            self.recorded[name] = CachedStates(torch.stack(found, dim=1).detach(), in_tuple)  # (B, taps, L, width)
            if all(other in self.recorded for other in self.wanted):
                raise Enough

        # first of the hooks: what an adapter adds to a layer's output is not frozen
        handles = [
            layers.get_submodule(str(tap)).register_forward_hook(partial(keep, tap), prepend=True)
            for tap in boundary.taps
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def replaying(model: nn.Module, tower: TowerConfig, boundary: Boundary, kept: CachedStates) -> Iterator[None]:
    """Put back what was kept: embeddings and frozen layers return it, whatever they are called with."""
    layers = model.get_submodule(tower.layers)
    with ExitStack() as stack:
        stack.enter_context(_returning(model.get_submodule(tower.embeddings), kept.states[:, 0]))
        for number in range(boundary.layers):
            tap = next(place for place, layer in enumerate(boundary.taps) if layer >= number)
            states = kept.states[:, tap]  # (B, L, width)
            stack.enter_context(_returning(layers.get_submodule(str(number)), (states,) if kept.in_tuple else states))
        yield


@dataclass(frozen=True, eq=False)
class _Returns:
    """A forward that needs no weights."""

    returns: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.returns


@contextmanager
def _returning(module: nn.Module, value: Any) -> Iterator[None]:
    """Let a module return a value instead of computing one; its hooks run."""
    own: dict[str, Any] = vars(module)
    before: dict[str, Any] = {name: own[name] for name in ("forward", "_compiled_call_impl") if name in own}
    own["forward"] = _Returns(value)
    own["_compiled_call_impl"] = None
    try:
        yield
    finally:
        del own["forward"], own["_compiled_call_impl"]
        own |= before


def padded(states: Sequence[Tensor], length: int | None = None) -> Tensor:
    """States (taps, L, width) of several samples in one tensor (B, taps, L, width), zeros behind the shorter ones.

    Args:
        states: the states.
        length: L of the result; None: that of the longest.
    """
    longest = length or max(one.shape[1] for one in states)
    if all(one.shape[1] == longest for one in states):
        return torch.stack(list(states))
    found = states[0].new_zeros(len(states), len(states[0]), longest, states[0].shape[-1])
    for row, one in enumerate(states):
        found[row, :, : one.shape[1]] = one
    return found
