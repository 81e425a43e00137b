"""What a row of the table of behaviour is; the rows are in `rows_*.py` beside it, the behaviour in test_methods.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from tests.backbones.small import SETTINGS
from tests.conftest import adapter_config as method
from vlatrain.adapters.tip_adapter import TipAdapter
from vlatrain.config import AdapterConfig
from vlatrain.injection.peft_method import Site
from vlatrain.injection.points import Place, Sites

__all__ = ["INNER", "TOWERS_DIFFER", "Row", "each", "method", "randomise", "widths"]

INNER = {  # width of the feed-forward layers, by tower: the same in the small backbones of the table
    tower: SETTINGS["blip"][part]["intermediate_size"]
    for tower, part in (("vision", "vision_config"), *((name, "text_config") for name in ("text", "fusion", "decoder")))
}
TOWERS_DIFFER = dict.fromkeys(
    [("blip", "captioning"), ("blip", "retrieval"), ("clip", "retrieval")],
    "cannot be shared over towers of different widths",
)  # where a projection cannot be shared over towers: only BLIP's for answers has two of one width


@dataclass
class Row:
    """A method in the table.

    Attributes:
        config: the method.
        count: its number of parameters, from where it goes: the closed formula of its docstring.
        points: where it goes; None: everywhere.
        unfit: places where it cannot go, with a piece of the reason it is refused with.
        cannot: behaviours of the table that it lacks, each with its reason.
        inexact: why it is not the frozen model at the start to the last bit; empty: it is.
        tolerance: how far off the loss may then be, relatively; infinity: it starts elsewhere, and not as the frozen model.
        renamed: pattern and replacement of those names of trained tensors that PEFT writes otherwise.
        fixed: pattern of the names that PEFT writes beside them: what it has drawn, and does not train.
        finish: what is left to do to an adapter of this name that PEFT has added.
    """

    config: AdapterConfig
    count: Callable[[Sites], int]
    points: list[str] | None = None
    unfit: dict[tuple[str, str], str] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)
    inexact: str = ""
    tolerance: float = 1e-3
    renamed: tuple[str, str] = ("", "")
    fixed: str = ""
    finish: Callable[[nn.Module, str], None] = lambda model, name: None


def randomise(model: nn.Module, seed: int = 5) -> None:
    """Give every trainable tensor, and what adapters at work keep of samples, random values."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    for site in (module for module in model.modules() if isinstance(module, Site)):
        for unit in (site.units[name] for name in site.active_adapters if name in site.units):
            if isinstance(unit, TipAdapter):
                unit.store(*(torch.randn(unit.values.shape, generator=generator) * 0.3 for _ in range(2)))


def each(count: Callable[[Place], int]) -> Callable[[Sites], int]:
    """So many parameters at each point, by its place."""
    return lambda where: sum(map(count, where.places.values()))


def widths(where: Sites) -> dict[str, int]:
    """Width of each tower that has a point."""
    return {point.tower: place.width for point, place in where.places.items()}
