"""Filling a new fusion with its sources' tensors, and asking a trained one what it uses."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from vlatrain.adapters import Adapter, Fusion
from vlatrain.config import UserError
from vlatrain.injection.peft_method import CHILD, UNITS, VlatrainConfig, kept, ties_of
from vlatrain.injection.points import Place, Point
from vlatrain.injection.saved import differences, shapes_of
from vlatrain.injection.sources import Source

log = logging.getLogger("vlatrain")


def fused_places(sources: Sequence[Source], places: Mapping[Point, Place]) -> dict[Point, Place]:
    """Those of the places where a source has an adapter. What a source has elsewhere goes unused: the log says so."""
    for source in sources:
        unused = sorted({point.tower for point in map(Point.parse, source.points) if point not in places})
        if unused:
            log.info(
                "Source %s: its adapters in %s that have no point here are left out", source.name, ", ".join(unused)
            )
        if source.adapter.get("modules_to_save"):
            log.warning("Source %s: its trained heads are left out; only its adapters are fused", source.name)
    return {point: place for point, place in places.items() if any(str(point) in source.points for source in sources)}


def fill(model: nn.Module, sources: Sequence[Source], adapter: str = "default") -> None:
    """Load the sources' tensors into a new fusion.

    Args:
        model: a `PeftModel` with a fusion; on the meta device nothing is loaded.
        sources: its sources, in the order of its configuration.
        adapter: name of the fusion.

    Raises:
        UserError: a source whose file lacks a tensor, or has it in another shape.
    """
    units = dict(_units(model, adapter))
    if all(parameter.is_meta for unit in units.values() for parameter in unit.parameters()):
        return
    for number, source in enumerate(sources):
        own = {point: unit.sources[str(number)] for point, unit in units.items() if str(number) in unit.sources}
        _fill(own, source)  # type: ignore[arg-type]


def _fill(units: Mapping[str, Adapter], source: Source) -> None:
    """Load a source's tensors into its units, by point."""
    tensors, found, wanted = load_file(source.weights), {}, {}
    for point, unit in units.items():
        for name, own in unit.state_dict(keep_vars=True).items():
            wanted[f"{name} of {point}"] = own
            if stored := next((key for key in _keys(unit, source, point, name) if key in tensors), None):
                found[f"{name} of {point}"] = tensors[stored]
    if told := differences(shapes_of(found), shapes_of(wanted)):
        raise UserError(f"adapter.sources: {source.weights} does not fit: {told}")
    with torch.no_grad():
        for name, own in wanted.items():
            own.copy_(found[name])


def _keys(unit: Adapter, source: Source, point: str, name: str) -> Iterator[str]:
    """Where a tensor may be stored: at its own point, or where a point is that shares it, directly or through others."""
    ties, points = ties_of(unit, source.adapter["share"]), {text: Point.parse(text) for text in source.points}
    waiting, seen = [point], {point}
    while waiting:
        at = waiting.pop(0)
        yield f"base_model.model.{source.points[at]['output']}.{CHILD}.{UNITS}.{name}"
        for part, over in ties.items():
            if not part or name.startswith(f"{part}."):
                common = kept(points[at], over)
                same = [other for other in points if other not in seen and kept(points[other], over) == common]
                waiting += same
                seen.update(same)


def usage(model: nn.Module, adapter: str = "default") -> dict[str, float]:
    """The share of each source in what a fusion puts out: its attention in training, the mean over the points; they add to 1.

    Empty for what is no fusion.
    """
    config = getattr(model, "peft_config", {}).get(adapter)
    if not isinstance(config, VlatrainConfig) or config.design != "fusion":
        return {}
    units = [unit for _, unit in _units(model, adapter)]
    shares = [0.0] * len(config.options["sources"])
    for unit in units:
        for number, share in zip(unit.sources, unit.attention.usage.tolist(), strict=True):
            shares[int(number)] += share / len(units)
    return {source["name"]: share for source, share in zip(config.options["sources"], shares, strict=True)}


def _units(model: Any, adapter: str) -> Iterator[tuple[str, Fusion]]:
    """The units of a fusion by point."""
    base = model.get_base_model()
    for point, place in model.peft_config[adapter].points.items():
        yield point, getattr(base.get_submodule(place["output"]), CHILD).units[adapter]
