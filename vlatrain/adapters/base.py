"""What every design has in common: the module at a place, and what it may know of the call it is in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn


class Call(NamedTuple):
    """What a module may use beside the states it adapts.

    Attributes:
        inputs: (B, L, width) the input of the sub-layer (with `reads = "input"` the states themselves).
        other: (B, S, other_width) states of the other modality; None where there are none.
        mask: (B, S) 1 for those that may be attended to; None: all.
        frozen: the frozen modules of the place, by role (`query`, `key`, `value` or `qkv`, `inner`, `out`, `norm`).
        carried: what the modules of a tower hand from layer to layer in one call (a module's own name for it: its value). The
            first one (see `requires`) finds what a call that broke off has left there.
        exported: what the modules of the tower that ran last have left to those of towers to come, under its name; it stays.
    """

    inputs: Tensor | None = None
    other: Tensor | None = None
    mask: Tensor | None = None
    frozen: Mapping[str, nn.Module] = {}
    carried: dict[str, Any] = {}
    exported: dict[str, Tensor] = {}


class Adapter(nn.Module):
    """A trainable module at a place in a frozen model.

    A subclass is one design. Its constructor takes `width`, the width of the states; then, by keyword, the facts it `requires`;
    then its own options, which are those of its YAML file. `forward(states, call)` returns what is added to the states.

    Of `at = "layer"`, a method `enter(arguments, call)` gets the layer's arguments by name and returns those it is called with.

    Attributes:
        at: where a design goes: `site` (the output of a sub-layer), `layer` (around whole layers, from `enter` to the output),
            `modules` (the output of each linear layer and norm of a site), `features` (image and text features).
        requires: facts about the place that the constructor takes: `other_width` (width of the other modality's states), `heads`
            (attention heads), `tower`, `index` (number of the layer), `site`, `layers` (of its tower), `first` and `last`
            (whether no earlier or later layer of the tower has one), `whole` (whether all of its layers have one), `causal`
            (whether a token of the tower sees only those before it), `end` (whether the tower ends in a head), `cross` and
            `cross_width` (the tower that its layers attend to by themselves, and the width of its states), `towers` (those that
            have one), `readers` (those of them that attend to this tower), `role` (of `modules` and `features`), `inputs` (of a
            linear layer; 0: it is none), `tasks` (names of the tasks). An instance that turns out not to need `other_width` may
            leave it out of its own: what it does not read need not be handed over.
        ties: parts that places always share, by attribute: `{"down": ("tower",)}` shares `down` between the towers. What may
            differ within a tie: any of tower, layer, site, task. An instance may set its own.
        reads: `output` (of the sub-layer) or `input`: what the states are. An instance may set its own.
        reads_inputs: whether it needs `Call.inputs` too where it reads the output. An instance may set its own.
        residual: False if `forward` returns the new states themselves, not what is added to them.
        frozen: submodules that never train.
        exclusive: True if it cannot take a part of a batch (and have others take the rest).
    """

    at: ClassVar[str] = "site"
    requires: tuple[str, ...] = ()
    ties: Mapping[str, tuple[str, ...]] = {}
    reads: str = "output"
    reads_inputs: bool = False
    residual: ClassVar[bool] = True
    frozen: tuple[str, ...] = ()
    exclusive: ClassVar[bool] = False

    @classmethod
    def takes(cls, role: str, options: Mapping[str, Any], site: str = "") -> bool:
        """Whether a place of this role in this site gets one, with these options: of `modules` and `features`, not all need to."""
        return True

    def forward(self, states: Tensor, call: Call) -> Tensor | None:
        """What to add to the states.

        Args:
            states: (B, L, width).
            call: what else there is.

        Returns:
            (B, L, width), or what broadcasts to it, of the type of `states`; None: nothing.
        """
        raise NotImplementedError

    def adopt(self, frozen: Mapping[str, nn.Module]) -> None:
        """Start from the frozen modules of the place (by role). Called once, when the module is new; by default nothing."""

    def resolve(self) -> None:
        """Called when its shared parts are in place: what refers to one of them does so from here. By default nothing."""


def borrow(owner: nn.Module, name: str, module: nn.Module) -> None:
    """Let `owner.name` be a module that belongs to another: used here, but registered, stored and counted there only."""
    path, _, last = name.rpartition(".")
    holder = owner.get_submodule(path)
    holder._modules.pop(last, None)  # not there if it was borrowed before
    holder.__dict__[last] = module
