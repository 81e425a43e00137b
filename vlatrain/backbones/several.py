"""Rows about several images: how many each has, and where in its text each stands.

A text on its way to a model has `PLACE` where an image stands. A chat template writes its own mark there, and the model's processor
as many tokens as the image comes to (`expansions`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from vlatrain.data.sample import IMAGE

PLACE = "\ufdd0"  # no character: Unicode keeps it for what programs mean by it, and no text has it


def counted(images: Sequence[Any]) -> list[int]:
    """How many images each row has: a list of them, or one."""
    return [len(own) if isinstance(own, list) else 1 for own in images]


def flat(images: Sequence[Any]) -> list[Any]:
    """The images of all rows, those of a row one after the other."""
    return [one for own in images for one in (own if isinstance(own, list) else [own])]


def parts_of(text: str, count: int) -> list[str]:
    """A text about so many images in pieces, between which images stand. In a text about one, what looks like a mark is text."""
    return text.replace(PLACE, "").split(IMAGE) if count > 1 else [text.replace(PLACE, "")]


def numbered(text: str, before: int = 0) -> str:
    """A text that marks the places of images with their numbers there, so many behind others: `image 1`, `image 2`.

    The images themselves stand in front of the text, in this order."""
    numbers = itertools.count(before + 1)
    return re.sub(IMAGE, lambda _: f"image {next(numbers)}", text)


def per_row(images: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """The items of all images, (N), by row."""
    rest = iter(images)
    return [[*itertools.islice(rest, count)] for count in counts]


def within(ids: Sequence[int], image: int, room: int) -> int:
    """How many of some tokens fit into so many, where an image's takes no room."""
    used = itertools.accumulate(token != image for token in ids)
    return sum(1 for tokens in used if tokens <= room)


def expansions(ids: Tensor, mask: Tensor, counts: Sequence[int], apart: int, padding: int) -> list[list[list[int]]]:
    """The tokens of images that stand behind prompts, each behind a token that no image has. They are taken out of the prompts.

    Args:
        ids: (B, L) what a processor made of prompts and of these images; changed in place.
        mask: (B, L) 1 for tokens, 0 for padding; changed in place.
        counts: so many images stand behind each prompt.
        apart: the token in front of each image.
        padding: the token that is left where they were.

    Returns:
        By row, the tokens of each image.
    """
    found: list[list[list[int]]] = []
    for row, count in enumerate(counts):
        places = mask[row].nonzero()[:, 0]
        own = ids[row, places]
        starts = (own == apart).nonzero()[:, 0].tolist()[-count:] if count else []
        ends = [*starts[1:], len(own)]
        found.append([own[start + 1 : end].tolist() for start, end in zip(starts, ends, strict=False)])
        if starts:
            ids[row, places[starts[0] :]], mask[row, places[starts[0] :]] = padding, 0
    return found


def expanded(
    ids: Sequence[int], image: int, shown: Sequence[Sequence[int]], own: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Tokens in which an image is one token, with all tokens of each image there.

    Args:
        ids: the tokens.
        image: the token that stands for an image.
        shown: all tokens of each image, in order.
        own: a number for each of the tokens.

    Yields:
        Each token and its number; an image's is 0.
    """
    images = iter(shown)
    for token, number in zip(ids, own, strict=True):
        if token == image:
            yield from ((one, 0) for one in next(images))
        else:
            yield token, number
