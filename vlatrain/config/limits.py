"""What a value of the right type must be, said at its field: `precision: Annotated[str, Choice("auto", "fp32")] = "auto"`.

OmegaConf sees the type alone (it takes no `Literal`). `limits` reads the rest back, for the checks and for whoever lists it.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, cast

from vlatrain.config.keys import did_you_mean, required, type_of


class Choice:
    """One of several values; of a list, each item is one of them."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def problems(self, key: str, value: Any) -> Iterator[str]:
        """What is wrong with a value that is set: a line for each that is none of the choices."""
        known = tuple(map(str, self.values))
        many = isinstance(value, list)
        for one in value if many else [value]:
            if one not in self.values:
                said = f"{key}: {one}: must be some of" if many else f"{key}={one}: must be one of"
                yield f"{said} {', '.join(known)}{did_you_mean(str(one), known)}"


@dataclass(frozen=True)
class Range:
    """Which numbers make sense.

    Attributes:
        holds: whether a number does.
        wanted: the range in words, as in `must be 1 or more`.
    """

    holds: Callable[[Any], bool]
    wanted: str

    def problems(self, key: str, value: Any) -> Iterator[str]:
        """What is wrong with a value that is set."""
        if not self.holds(value):
            yield f"{key}={value}: must be {self.wanted}"


@dataclass(frozen=True)
class OrAuto:
    """A whole number in a range, or `auto`.

    Attributes:
        range: the range.
    """

    range: Range

    def problems(self, key: str, value: Any) -> Iterator[str]:
        """What is wrong with a value that is set."""
        if isinstance(value, bool) or not isinstance(value, int):
            if value != "auto":
                yield f"{key}={value}: must be auto, or a whole number that is {self.range.wanted}"
            return
        yield from self.range.problems(key, value)


POSITIVE = Range(lambda value: value > 0 and math.isfinite(value), "more than 0")
NOT_NEGATIVE = Range(lambda value: value >= 0 and math.isfinite(value), "0 or more")
AT_LEAST_ONE = Range(lambda value: value >= 1, "1 or more")
FINITE = Range(math.isfinite, "a finite number")
DROP_RATE = Range(lambda value: 0 <= value < 1, "at least 0 and less than 1")
PROBABILITY = Range(lambda value: 0 <= value <= 1, "between 0 and 1")
AREA = Range(lambda value: 0 < value <= 1, "more than 0 and at most 1")
SPLIT = Range(lambda value: 0 < value < 1, "between 0 and 1")


@cache
def limits(schema: type) -> Mapping[str, Choice | Range | OrAuto]:
    """By dotted key what the fields of a dataclass, and of those in it, say that their values must be."""
    by_key: dict[str, Choice | Range | OrAuto] = {}
    for name, hint in typing.get_type_hints(schema, include_extras=True).items():
        inner = required(type_of(schema, name))
        if dataclasses.is_dataclass(inner):
            by_key |= {f"{name}.{key}": limit for key, limit in limits(cast(type, inner)).items()}
        elif typing.get_origin(hint) is Annotated:
            by_key[name] = hint.__metadata__[0]
    return by_key


def choices(schema: type, key: str) -> tuple[Any, ...]:
    """The choices that a key has.

    Raises:
        KeyError: it has none.
    """
    limit = limits(schema)[key]
    if not isinstance(limit, Choice):
        raise KeyError(key)
    return limit.values


def problems(config: Any, key: str = "") -> Iterator[str]:
    """What is wrong with the values of a dataclass, and of those in it; what is null is not asked.

    Args:
        config: the configuration, or a group of it.
        key: dotted key of the group.
    """
    schema: Any = type(config)
    for name, limit in limits(schema).items():
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        if value is not None:
            yield from limit.problems(f"{key}.{name}" if key else name, value)
