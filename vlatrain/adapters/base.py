"""What every design has in common: the module at a place, and what it may know of the call it is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
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
            first one (see `Facts`) finds what a call that broke off has left there.
        exported: what the modules of the tower that ran last have left to those of towers to come, under its name; it stays.
    """

    inputs: Tensor | None = None
    other: Tensor | None = None
    mask: Tensor | None = None
    frozen: Mapping[str, nn.Module] = {}
    carried: dict[str, Any] = {}
    exported: dict[str, Tensor] = {}


@dataclass(frozen=True)
class Facts:
    """What a place tells of itself.

    Attributes:
        width: width of the states (of `modules`: of the module's output).
        other_width: width of the other modality's states; 0: the place gets none.
        heads: attention heads of the tower; 0: it has none.
        tower: name of the tower.
        index: number of the layer.
        site: the sub-layer.
        layers: number of the tower's layers.
        first: whether no earlier layer of the tower has one.
        last: whether no later layer of the tower has one.
        whole: whether all layers of the tower have one.
        causal: whether a token of the tower sees only those before it.
        end: whether the tower ends in a head.
        cross: the tower that the layers attend to by themselves; empty: none.
        cross_width: width of that tower's states.
        towers: the towers that have one.
        readers: those of them that attend to this tower.
        role: of `modules` and `features`, which one of them it is.
        inputs: inputs of a linear layer; 0: the module is none.
        tasks: names of the tasks that have adapters of their own.
    """

    width: int
    other_width: int = 0
    heads: int = 1
    tower: str = ""
    index: int = 0
    site: str = ""
    layers: int = 1
    first: bool = True
    last: bool = True
    whole: bool = True
    causal: bool = False
    end: bool = True
    cross: str = ""
    cross_width: int = 0
    towers: Sequence[str] = ()
    readers: Sequence[str] = ()
    role: str = ""
    inputs: int = 0
    tasks: Sequence[str] = ()


@dataclass(frozen=True)
class NoOptions:
    """The options of a design that has none."""


class Adapter(nn.Module):
    """A trainable module at a place in a frozen model.

    A subclass is one design. It is made from what its place tells and from its options, a dataclass with the fields of its YAML
    file. `forward(states, call)` returns what is added to the states.

    Of `at = "layer"`, a method `enter(arguments, call)` gets the layer's arguments by name and returns those it is called with.

    Args:
        facts: what the place tells.
        options: an instance of `Options`.

    Attributes:
        Options: the dataclass of its options. A value that is no field of it is refused by name (`options_of`).
        at: where a design goes: `site` (the output of a sub-layer), `layer` (around whole layers, from `enter` to the output),
            `modules` (the output of each linear layer and norm of a site), `features` (image and text features).
        ties: parts that places always share, by attribute: `{"down": ("tower",)}` shares `down` between the towers. What may
            differ within a tie: any of tower, layer, site, task. An instance may set its own.
        reads: `output` (of the sub-layer) or `input`: what the states are. An instance may set its own.
        reads_other: whether it needs `Call.other`, the other modality's states. An instance may set its own.
        reads_inputs: whether it needs `Call.inputs` too where it reads the output. An instance may set its own.
        residual: False if `forward` returns the new states themselves, not what is added to them.
        frozen: submodules that never train.
        exclusive: True if it cannot take a part of a batch (and have others take the rest).
    """

    Options: ClassVar[type[Any]] = NoOptions
    at: ClassVar[str] = "site"
    ties: Mapping[str, tuple[str, ...]] = {}
    reads: str = "output"
    reads_other: bool = False
    reads_inputs: bool = False
    residual: ClassVar[bool] = True
    frozen: tuple[str, ...] = ()
    exclusive: ClassVar[bool] = False

    def __init__(self, facts: Facts, options: Any) -> None:
        super().__init__()

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

    def change_of(self, module: nn.Module) -> Mapping[str, Tensor] | None:
        """What it comes to as a change of the weights of the module whose output it adapts: by the names of these, what is added.

        None, the default: it is no such change. Of `at = "modules"` some designs are.

        Args:
            module: the module.
        """
        return None

    def resolve(self) -> None:
        """Called when its shared parts are in place: what refers to one of them does so from here. By default nothing."""


def options_of(design: type[Adapter], values: Mapping[str, Any]) -> Any:
    """The options of a design by their names, as its `Options`.

    Raises:
        ValueError: it has others, or needs more; all of them are named.
    """
    known = {
        field.name: field.default is MISSING and field.default_factory is MISSING for field in fields(design.Options)
    }
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    if lacking := [name for name, needed in known.items() if needed and name not in values]:
        raise ValueError(f"needs the option {', '.join(lacking)}")
    return design.Options(**values)


def borrow(owner: nn.Module, name: str, module: nn.Module) -> None:
    """Let `owner.name` be a module that belongs to another: used here, but registered, stored and counted there only."""
    path, _, last = name.rpartition(".")
    holder = owner.get_submodule(path)
    holder._modules.pop(last, None)  # not there if it was borrowed before
    holder.__dict__[last] = module
