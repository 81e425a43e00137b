"""Which pictures have the same content, though they lie in different files: found by reading as little of them as possible.

Two files are compared only if they are of the same size in bytes, then by their last bytes, and only then as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vlatrain.config.errors import UserError
from vlatrain.data.images import header_of, identity
from vlatrain.data.sample import Picture

TAIL = 4096  # bytes at the end of a file that are compared before the whole


def same_content(pictures: Iterable[Picture]) -> dict[str, str]:
    """What tells pictures apart by their content.

    Args:
        pictures: the pictures; those that are in no file are told apart by their `identity`.

    Returns:
        By the `identity` of each picture that of the first with the same content.
    """
    distinct: dict[str, Picture] = {}
    for picture in pictures:
        distinct.setdefault(identity(picture), picture)
    first = {key: key for key in distinct}
    stored = [(key, picture) for key, picture in distinct.items() if header_of(picture)]
    groups: list[list[tuple[str, Picture]]] = [stored]
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for look in (_size, _tail, _whole):
            groups = [alike for group in groups for alike in _split(group, look, pool)]
    for group in groups:
        for key, _ in group:
            first[key] = group[0][0]
    return first


def _split(
    group: Sequence[tuple[str, Picture]], look: Callable[[Any], Hashable], pool: ThreadPoolExecutor
) -> list[list[tuple[str, Picture]]]:
    """Those of a group that look alike, where there are two or more."""
    alike: dict[Hashable, list[tuple[str, Picture]]] = {}
    each = map if look is _size else pool.map
    for item, seen in zip(group, each(look, [picture for _, picture in group]), strict=True):
        alike.setdefault(seen, []).append(item)
    return [items for items in alike.values() if len(items) > 1]


def _size(picture: Picture) -> Hashable:
    return header_of(picture)


def _tail(picture: Any) -> Hashable:
    try:
        with picture.open() as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return bytes(file.read())
    except OSError:  # it has just been removed
        return identity(picture)


def _whole(picture: Picture) -> Hashable:
    try:
        return picture.key
    except UserError:
        return identity(picture)
