"""Where training begins in each tower: what lies before is a pure function of the sample, and can be kept.

It is derived from the model as it is, adapters in it, never declared: a tower is frozen up to the first of its layers with
something trained or an adapter in it, as long as what it reads is frozen as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from vlatrain.adapters import Ladder
from vlatrain.backbones.prefix import Boundary
from vlatrain.config import ModelConfig
from vlatrain.injection.site import Site


@dataclass(frozen=True)
class Frontier:
    """What can be kept of a tower.

    Attributes:
        boundary: the frozen part; None: there is none.
        pinned: what begins there, or keeps everything before from being kept: the name of a parameter or module, or a reason;
            empty: nothing, the whole tower is frozen.
        of: what of the sample the states are a function of.
        reads: the towers whose states go into it.
    """

    boundary: Boundary | None
    pinned: str
    of: tuple[str, ...]
    reads: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the tower is frozen as a whole, so that towers that read it can be too."""
        return self.boundary is not None and not self.pinned


def frontiers(model: nn.Module, config: ModelConfig, task: str) -> dict[str, Frontier]:
    """The frontier of each tower whose states are a function of the sample, in the order data flows.

    Args:
        model: the backbone's own model, adapters in it.
        config: its description.
        task: the task.
    """
    served = config.tasks[task]
    outside = _outside(model, config, task)
    found: dict[str, Frontier] = {}
    for tower in (name for name in served.towers if served.cacheable_inputs.get(name)):
        reads = served.cacheable_inputs[tower]
        of = dict.fromkeys(what for name in reads for what in (found[name].of if name in found else (name,)))
        blocked = next((found[name].pinned or name for name in reads if name in found and not found[name].whole), "")
        own = _of_tower(model, config, tower, blocked or outside, tuple(of))
        found[tower] = replace(own, reads=tuple(name for name in reads if name in found))
    return found


def _of_tower(model: nn.Module, config: ModelConfig, tower: str, blocked: str, of: tuple[str, ...]) -> Frontier:
    path = config.towers[tower].layers
    layers = list(model.get_submodule(path).children())
    if blocked:
        return Frontier(None, blocked, of)
    changed = {number: name for number, layer in reversed([*enumerate(layers)]) if (name := _changed(layer))}
    if changed and all(_beside(layer) for layer in layers):  # a ladder: nothing that trains changes what enters a layer
        first = f"{tower}.{min(changed)}: {changed[min(changed)]}"
        return Frontier(Boundary(tower, len(layers), tuple(range(len(layers)))), first, of)
    count = min(changed, default=len(layers))
    pinned = f"{tower}.{count}: {changed[count]}" if changed else ""
    return Frontier(Boundary(tower, count, (count - 1,)) if count else None, pinned, of)


def _changed(layer: nn.Module) -> str:
    """The first thing in a layer that trains, or that changes what it computes; empty if there is none."""
    for name, module in layer.named_modules():
        if isinstance(module, (Site, BaseTunerLayer)) and (isinstance(module, Site) or module.active_adapters):
            return name or type(module).__name__
    return next((name for name, parameter in layer.named_parameters() if parameter.requires_grad), "")


def _beside(layer: nn.Module) -> bool:
    """Whether a layer's output is read by a side network and otherwise frozen."""
    inside = [module for module in layer.modules() if isinstance(module, (Site, BaseTunerLayer))]
    sites = [module for module in inside if isinstance(module, Site)]
    ladders = all(isinstance(unit, Ladder) for site in sites for unit in site.units.values())
    frozen = not any(p.requires_grad for name, p in layer.named_parameters() if ".vlatrain_unit" not in f".{name}")
    return ladders and frozen and len(sites) == len(inside)


def _outside(model: nn.Module, config: ModelConfig, task: str) -> str:
    """Something that trains and is in no layer of a tower, nor behind all of them: it may be before any."""
    served = config.tasks[task]
    after = [*served.heads, *served.features.values(), *served.trained]
    after += [path for name in served.towers for path in (config.towers[name].layers, config.towers[name].norm) if path]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(name == path or name.startswith(f"{path}.") for path in after):
            return name
    return ""


def needed(frontiers: Mapping[str, Frontier], asked: bool = True) -> list[str]:
    """The towers whose states a call takes: those that can be kept, but for those that only a tower reads that is kept as a whole.

    Args:
        frontiers: what `frontiers` returned.
        asked: whether a question is put.
    """
    kept = [name for name, own in frontiers.items() if own.boundary and (asked or "question" not in own.of)]
    whole = {reads for name in kept if frontiers[name].whole for reads in frontiers[name].reads}
    return [name for name in kept if name not in whole]
