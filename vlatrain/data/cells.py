"""What a cell of a table may hold: a text, several texts, answers with weights.

- A text is a string, stripped; a number becomes its digits (3.0 becomes "3"), a boolean "yes" or "no".
- Several texts are a list, or for answers a list of objects with `answer` and optionally `weight`. A string is one text; only
  CSV and TSV, which have no lists, write a list as a string (`parse_list`: JSON, or as Python prints it).
- A string in place of weights, or of a conversation, is read as a list in every format: it cannot be meant as a text.
"""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

MOST = 200_000  # characters of a text: a tokenizer reads all of them before it cuts, and no model reads so many
SHOWN = 80  # characters of a cell in a message
KEYS_SHOWN = 6  # keys of an object in a message


class CellError(Exception):
    """What is wrong with a cell, in a few words."""


def json_of(text: str) -> Any:
    """What a JSON text says.

    Raises:
        json.JSONDecodeError: it is none, or has a number of more digits than Python reads.
        RecursionError: it is nested too deep.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # `sys.set_int_max_str_digits`: a few MB of digits would take minutes
        found = re.search(rf"\d{{{sys.get_int_max_str_digits() + 1},}}", text)
        if found is None:
            raise json.JSONDecodeError(str(error), text, 0) from error
        raise json.JSONDecodeError(f"a number of {len(found.group()):,} digits", text, found.start()) from error


def clipped(value: Any, most: int = SHOWN) -> str:
    """What a message shows of a cell: one line, whole if it is short, else its beginning and its length."""
    shown = " ".join(str(value).split())
    return shown if len(shown) <= most else f"{shown[:most]}... ({len(shown):,} characters)"


def listed(names: Sequence[str], most: int = 12) -> str:
    """What a message shows of names: the first of them, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(clipped(name) for name in names[:most]) + more


def value_at(value: Any, path: Sequence[str]) -> Any:
    """What lies below keys of a nested value.

    Args:
        value: an object, or a list of objects, of which each item is looked into; a number as a key chooses an item.
        path: the keys.

    Returns:
        The value; of a list what lies there in each item, in one list.

    Raises:
        CellError: an object lacks a key, or it is no object.
    """
    for place, key in enumerate(path):
        if value is None:
            return None
        if isinstance(value, list | tuple):
            if key.isdecimal():
                if int(key) >= len(value):
                    raise CellError(f"no item {key} in a list of {len(value)}")
                value = value[int(key)]
                continue
            below = [value_at(item, path[place:]) for item in value]
            return [one for item in below for one in (item if isinstance(item, list) else [item])]
        if not isinstance(value, Mapping):
            raise CellError(f"expected an object with '{key}', found {kind(value)}")
        if key not in value:
            raise CellError(
                f"an object without '{key}'; it has {listed(list(map(str, value)), KEYS_SHOWN) or 'nothing'}"
            )
        value = value[key]
    return value


def text(value: Any) -> str:
    """A cell as text, stripped, of at most `MOST` characters; empty for a missing value. Raises `CellError` for what is no text."""
    if isinstance(value, str):
        stripped: str = value.strip()[:MOST]
        if not stripped.isascii():
            try:
                stripped.encode("utf-8")
            except UnicodeEncodeError:
                raise CellError("text with half a surrogate pair") from None
        return stripped
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        if math.isinf(value):
            raise CellError("expected text, found an infinite number")
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int) or type(value).__module__ in ("decimal", "datetime"):
        return str(value)
    raise CellError(f"expected text, found {kind(value)}")


def texts(value: Any, key: str = "") -> list[tuple[str, float | None]]:
    """A cell as (text, weight) pairs.

    Args:
        value: a text, a list of texts, or (with `key`) objects with that key and optionally `weight`.
        key: name of the text in an object.

    Raises:
        CellError: if it is none of these.
    """
    if isinstance(value, Mapping):
        value = _object_of_lists(value, key)
    if not isinstance(value, list | tuple):
        return [(text(value), None)]
    return [_pair(item, key) for item in value]


def _pair(item: Any, key: str) -> tuple[str, float | None]:
    if not isinstance(item, Mapping):
        return text(item), None
    if not key or key not in item:
        raise CellError(f"an object without '{key}'" if key else "expected text, found an object")
    weight = item.get("weight")
    return text(item[key]), None if weight is None else _number(weight)


def _object_of_lists(value: Mapping[str, Any], key: str) -> list[Any]:
    """One object as a list of it; an object of lists, as some libraries store a list of objects, as that list."""
    columns = {name: cells for name, cells in value.items() if name in (key, "weight") and isinstance(cells, list)}
    if key not in columns:
        return [value]
    if len({len(cells) for cells in columns.values()}) > 1:
        raise CellError(f"'{key}' and 'weight' differ in length")
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def parse_list(value: str) -> Any:
    """A list written in a cell: JSON, or as Python prints it (pandas writes that). Other text stays text."""
    stripped = value.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return value
    try:
        return json_of(stripped)
    except (json.JSONDecodeError, RecursionError):
        pass
    try:
        return ast.literal_eval(stripped)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        if stripped[1:].lstrip()[:1] in ("'", '"', "{"):
            raise CellError(
                f"looks like a list and is not one that can be read (write JSON): {clipped(stripped)}"
            ) from None
        return value  # "[unclear]" is a text


def bare_numbers(value: Any) -> bool:
    """Whether this is a list of nothing but numbers."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, int | float) for item in value)


def with_weights(pairs: list[tuple[str, float | None]], value: Any) -> list[tuple[str, float | None]]:
    """The pairs with the weights of the row's `weights` cell, which win over those in the answers."""
    value = parse_list(value) if isinstance(value, str) else value
    if value is None or value == "":
        return pairs
    weights = value if isinstance(value, list) else [value]
    if len(weights) != len(pairs):
        raise CellError(f"{len(weights)} weights for {len(pairs)} answers")
    return [(answer, _number(weight)) for (answer, _), weight in zip(pairs, weights, strict=True)]


def check_weights(weights: list[float | None]) -> tuple[float, ...]:
    """The weights if all answers have one, nothing if none has. Raises `CellError` otherwise, or if one is negative."""
    given = [weight for weight in weights if weight is not None]
    if not given:
        return ()
    if len(given) < len(weights):
        raise CellError("some answers have a weight and some have none")
    if any(weight < 0 or not math.isfinite(weight) for weight in given) or sum(given) <= 0:
        raise CellError(f"weights must be 0 or more, and not all 0, found {clipped(given)}")
    return tuple(given)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise CellError(f"a weight must be a number, found {clipped(repr(value))}") from None


def kind(value: Any) -> str:
    """What to call the type of a value in a message."""
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"{type(value).__name__}"
