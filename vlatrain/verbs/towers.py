"""Where a run's parameters train, by tower, layer and site, as `metrics.json` holds it and a report draws it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from vlatrain.backbones.describe import sites
from vlatrain.backbones.quantise import size_of
from vlatrain.config import TrainConfig
from vlatrain.injection.attach import group_of
from vlatrain.injection.points import PROJECTION

LAYER = "layer"  # in the place of a site: what trains in a layer and belongs to none of its sites


def towers(config: TrainConfig, model: nn.Module) -> dict[str, Any]:
    """The towers of a run's backbone, and what trains in them.

    Args:
        config: the run's configuration.
        model: the model with what was put into it.

    Returns:
        `towers`: by name, in the order data flows, its `layers`, its `sites`, and under `trainable` the number of parameters by
        `layer.site`. `trainable_elsewhere`: those that are in no layer, by parameter group.
    """
    found = sites(config.model, config.task.name, ["*"])
    places = {}
    for point, place in found.places.items():
        if point.site != PROJECTION:
            places[place.layer] = (point.tower, f"{point.layer}.{LAYER}")
    for point, place in found.places.items():
        for path in (place.output, place.input, *place.modules.values()) if point.site != PROJECTION else ():
            places[path] = (point.tower, f"{point.layer}.{point.site}")
    longest = sorted(places, key=len, reverse=True)
    trainable: dict[str, Counter[str]] = {tower: Counter() for tower in found.stacks}
    elsewhere = Counter[str]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            known = next((places[path] for path in longest if path and f".{path}." in f".{name}"), None)
            if known is None:
                elsewhere[group_of(name)] += size_of(parameter)
            else:
                trainable[known[0]][known[1]] += size_of(parameter)
    described = {}
    for tower, stack in found.stacks.items():
        counts = dict(trainable[tower])
        more = [LAYER] if any(key.endswith(f".{LAYER}") for key in counts) else []
        described[tower] = {"layers": stack.layers, "sites": [*stack.sites, *more], "trainable": counts}
    return {"towers": described, **({"trainable_elsewhere": dict(elsewhere)} if elsewhere else {})}
