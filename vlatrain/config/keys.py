"""Dotted keys of the dataclass schema: what exists, what a key's type is, what was probably meant."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def required(hint: Any) -> Any:
    """The type without `| None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arguments = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        return arguments[0] if len(arguments) == 1 else Any
    return hint


def type_of(schema: type, key: str) -> Any:
    """Type of a dotted key; `Any` below an untyped mapping.

    Raises:
        KeyError: there is no such key.
    """
    hint: Any = schema
    for part in key.split("."):
        hint = required(hint)
        if dataclasses.is_dataclass(hint):
            hint = _hints(cast(type, hint))[part]
        elif typing.get_origin(hint) in (dict, list):
            hint = typing.get_args(hint)[-1]
        elif hint is not Any:
            raise KeyError(key)
    return hint


def open_below(schema: type, key: str) -> bool:
    """Whether a key lies in a mapping whose keys the user chooses (`optim.groups.head`)."""
    parts = key.split(".")
    return any(
        typing.get_origin(required(type_of(schema, ".".join(parts[:cut])))) is dict for cut in range(1, len(parts))
    )


def is_open(schema: type, key: str) -> bool:
    """Whether a key is itself such a mapping."""
    return typing.get_origin(required(type_of(schema, key))) is dict


def all_keys(schema: type, key_prefix: str = "") -> Iterator[str]:
    """Every dotted key, the groups included."""
    for name, hint in _hints(schema).items():
        yield key_prefix + name
        inner = required(hint)
        if dataclasses.is_dataclass(inner):
            yield from all_keys(cast(type, inner), f"{key_prefix}{name}.")


def leaves(value: Any, key: str = "") -> dict[str, Any]:
    """By dotted key what nested values hold that is not null."""
    if not (isinstance(value, Mapping) and value):
        return {} if value is None else {key: value}
    return {
        name: leaf
        for below, inner in value.items()
        for name, leaf in leaves(inner, f"{key}.{below}" if key else str(below)).items()
    }


def nearest(word: str, candidates: Iterator[str] | list[str] | tuple[str, ...]) -> str | None:
    """The candidate that was probably meant, or None. The last part counts most: `dim` means `adapter.dim`."""
    key_prefix, _, last = word.rpartition(".")

    def likeness(candidate: str) -> float:
        other_prefix, _, other_last = candidate.rpartition(".")
        whole = difflib.SequenceMatcher(None, word, candidate).ratio()
        end = difflib.SequenceMatcher(None, last, other_last).ratio()
        start = difflib.SequenceMatcher(None, key_prefix, other_prefix).ratio() if key_prefix else 0.5
        return max(whole, 0.8 * end + 0.2 * start)

    best = max(candidates, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.6 else None


def did_you_mean(word: str, candidates: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    """`; did you mean adapter.dim?`, or nothing."""
    best = nearest(word, candidates)
    return f"; did you mean {best}?" if best else ""


def type_name(hint: Any) -> str:
    """A type in a user's words."""
    inner = required(hint)
    if inner is Any and hint is not Any:
        return " or ".join(type_name(one) for one in typing.get_args(hint))
    origin = typing.get_origin(inner)
    if origin is list:
        name = "a list, such as [a,b]"
    elif origin is dict or dataclasses.is_dataclass(inner):
        name = "a mapping, such as {key: value}"
    else:
        name = _NAMES.get(inner, str(inner))
    return f"{name} or null" if inner is not hint else name


def problems_in(schema: type, value: Any, key: str = "", source: str = "") -> list[str]:
    """What is wrong with a plain value (scalars, lists, dicts) for a key: unknown keys in it, and wrong types.

    Args:
        schema: dataclass of the whole configuration.
        value: the value; a dict for a group.
        key: dotted key of the value; empty for the whole configuration.
        source: where it was written, put before each message.
    """
    before = f"{source}: " if source else ""
    try:
        hint = type_of(schema, key) if key else schema
    except KeyError:
        return [f"{before}there is no key {key}{did_you_mean(key, all_keys(schema))}"]
    inner = required(hint)
    if (dataclasses.is_dataclass(inner) or typing.get_origin(inner) is dict) and isinstance(value, Mapping):
        return [
            problem
            for name, below in value.items()
            for problem in problems_in(schema, below, f"{key}.{name}" if key else str(name), source)
        ]
    if typing.get_origin(inner) is list and isinstance(value, list):
        (item,) = typing.get_args(inner)
        if dataclasses.is_dataclass(item) and all(isinstance(each, Mapping) for each in value):
            return [found for each in value for found in problems_in(cast(type, item), each, source=f"{before}{key}")]
    if key and not _fits(hint, value):
        shown = "null" if value is None else str(value)
        return [f"{before}{key}={shown}: expected {type_name(hint)}"]
    return []


def unknown_keys(schema: type, values: Mapping[str, Any], key_prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested values that the schema lacks."""
    hints = _hints(schema)
    for name, inner in values.items():
        hint = required(hints.get(name))
        if name not in hints:
            yield f"{key_prefix}{name}"
        elif dataclasses.is_dataclass(hint) and isinstance(inner, Mapping):
            yield from unknown_keys(cast(type, hint), inner, f"{key_prefix}{name}.")


@cache
def _holder(hint: Any) -> type:
    return dataclasses.make_dataclass("Holder", [("value", hint)])


def _fits(hint: Any, value: Any) -> bool:
    """Whether OmegaConf would take the value for the type."""
    if hint is Any or (isinstance(value, str) and (value == "???" or "${" in value)):
        return True  # an interpolation is decided when everything is put together
    inner = required(hint)
    if (value is None and inner is not hint) or (inner in _NAMES and type(value) is inner):
        return True  # most values, and OmegaConf takes its time over them
    try:
        OmegaConf.update(OmegaConf.structured(_holder(hint)), "value", value, merge=False)
    except (OmegaConfBaseException, ValueError, TypeError, KeyError, AttributeError):
        return False
    return True
