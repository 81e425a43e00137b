"""What a row of the table of behaviour is; the rows are in `rows_*.py` beside it, the behaviour in test_methods.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.conftest import adapter_config as method
from vlatrain.config import AdapterConfig
from vlatrain.injection.points import Sites

__all__ = ["WIDTH", "Row", "each", "method"]

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
    """

    config: AdapterConfig
    count: Callable[[Sites], int]
    points: list[str] | None = None
    unfit: dict[tuple[str, str], str] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)
    inexact: str = ""


def each(count: int) -> Callable[[Sites], int]:
    """So many parameters at each point."""
    return lambda where: len(where.places) * count
