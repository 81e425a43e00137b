"""Adapters alone, without a backbone."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from vlatrain.adapters import Adapter, Facts, options_of

Design = TypeVar("Design", bound=Adapter)
FACTS = {field.name for field in fields(Facts)}


def adapter_of(design: type[Design], width: int, dim: int | None = None, **values: Any) -> Design:
    """One of a design, from what a place tells and from options, by their names."""
    told = {name: value for name, value in values.items() if name in FACTS}
    options = {name: value for name, value in values.items() if name not in FACTS} | (
        {} if dim is None else {"dim": dim}
    )
    return design(Facts(width, **told), options_of(design, options))
