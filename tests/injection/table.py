"""What a row of the table of behaviour is; the rows are in `rows_*.py` beside it, the behaviour in test_methods.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from tests.conftest import adapter_config as method
from vlatrain.adapters.tip_adapter import TipAdapter
from vlatrain.config import AdapterConfig
from vlatrain.injection.peft_method import Site
from vlatrain.injection.points import Sites

__all__ = ["WIDTH", "Row", "each", "method", "randomise"]

WIDTH = 32  # of every tower of the small backbones, which have two layers, two heads, and feed-forward layers of 64


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
                unit.fill(*(torch.randn(unit.values.shape, generator=generator) * 0.3 for _ in range(2)))


def each(count: int) -> Callable[[Sites], int]:
    """So many parameters at each point."""
    return lambda where: len(where.places) * count
