"""Dotted keys of the dataclass schema: what exists, what a key's type is, what was probably meant."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
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


def few(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and whether there are more."""
    named = list(names)
    return ", ".join([*named[:most], *(["..."] if len(named) > most else [])])


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
        return [f"{before}{_unknown(schema, key)}"]
    return [f"{before}{problem}" for problem in _problems(schema, hint, value, key)]


def _problems(schema: type, hint: Any, value: Any, key: str) -> Iterator[str]:
    """What is wrong with a value of a type. A mapping's keys may have dots in them, so none is looked up by its dotted name."""
    inner = required(hint)
    if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
        hints = _hints(cast(type, inner))
        for name, below in value.items():
            at = f"{key}.{name}" if key else str(name)
            if name in hints:
                yield from _problems(schema, hints[name], below, at)
            else:
                yield _unknown(schema, at)
    elif typing.get_origin(inner) is dict and isinstance(value, Mapping):
        for name, below in value.items():
            yield from _problems(schema, typing.get_args(inner)[1], below, f"{key}.{name}")
    elif _holds_dataclasses(inner) and isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        (item,) = typing.get_args(inner)
        for each in value:
            yield from (f"{key}: {problem}" for problem in _problems(item, item, each, ""))
    elif key and not _fits(hint, value):
        shown = "null" if value is None else str(value)
        yield f"{key}={shown}: expected {type_name(hint)}"


def _holds_dataclasses(hint: Any) -> bool:
    return typing.get_origin(hint) is list and dataclasses.is_dataclass(typing.get_args(hint)[0])


def _unknown(schema: type, key: str) -> str:
    return f"there is no key {key}{did_you_mean(key, all_keys(schema))}"


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
