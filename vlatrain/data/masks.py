"""Masks: of each pixel of an image the number of its class, as a PNG beside the image or in a column."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import Image

from vlatrain.config.errors import UserError
from vlatrain.data.cells import listed
from vlatrain.data.checks import Problems
from vlatrain.data.images import BAD_IMAGE, explain, opened, size_of
from vlatrain.data.sample import Picture, Sample

MODES = ("1", "L", "P", "I", "I;16", "I;16B")  # of PIL: one number a pixel; a palette's colours are for people


def ids_of(mask: Picture) -> np.ndarray:
    """The class of each pixel: (H, W), integers. A mask in black and white has 0 and 1.

    Raises:
        UserError: it cannot be read, or has colours in place of numbers.
    """
    if (own := getattr(mask, "ids", None)) is not None:  # generated
        drawn: np.ndarray = own()
        return drawn
    name, opener = getattr(mask, "name", "mask"), getattr(mask, "open", None)
    assert opener is not None, "a stored picture"
    try:
        with opener() as file, opened(file) as image:
            if image.mode not in MODES:
                raise UserError(
                    f"{name}: the mask has colours ({image.mode}), and each pixel is to be the number of its class: "
                    "save it as a grey or palette PNG of these numbers"
                )
            return np.asarray(image).astype(np.int32)
    except BAD_IMAGE as error:
        raise UserError(f"{name}: {explain(error)}") from error


@dataclass(frozen=True)
class Content:
    """What is in a mask.

    Attributes:
        size: (width, height) in pixels.
        pixels: by class, how many.
    """

    size: tuple[int, int]
    pixels: Mapping[int, int]


def content_of(mask: Picture) -> Content:
    """What is in a mask, read once. Raises `UserError` as `ids_of` does."""
    return _content_of(cast(Any, mask))


@lru_cache(maxsize=1_000_000)
def _content_of(mask: Any) -> Content:
    ids = ids_of(mask)
    numbers, counts = np.unique(ids, return_counts=True)
    return Content((ids.shape[1], ids.shape[0]), dict(zip(numbers.tolist(), counts.tolist(), strict=True)))


def contents(samples: Sequence[Sample]) -> Iterator[Content | UserError]:
    """What is in the masks of samples, in order, read in threads; or what keeps one from being read."""

    def read(sample: Sample) -> Content | UserError:
        assert sample.mask is not None
        try:
            return content_of(sample.mask)
        except UserError as error:
            return error

    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        yield from pool.map(read, samples)


def names_of(train: Sequence[Sample], ignore: int) -> list[str]:
    """The classes of training masks by their numbers: those that the data names, else `0` to the highest number."""
    named = next((names for sample in train if (names := getattr(sample.mask, "names", None))), None)
    if named:
        return list(named)
    found = [content for content in contents(train) if isinstance(content, Content)]
    highest = max((number for content in found for number in content.pixels if number != ignore), default=0)
    return [str(number) for number in range(highest + 1)]


def check_masks(
    samples: Mapping[str, Sequence[Sample]], classes: Sequence[str], ignore: int, problems: Problems
) -> None:
    """Report masks that cannot be read, are of another size than their image, or have numbers of no class.

    Args:
        samples: the splits.
        classes: the classes; empty: those of `train`.
        ignore: the number of pixels that are not counted.
        problems: where to report.
    """
    known = len(classes or names_of(samples.get("train", ()), ignore))
    if known < 2:
        problems.add("classes", "data.train: its masks have a single class; a choice needs two or more")
        return
    for found in samples.values():
        for sample, content in zip(found, contents(found), strict=True):
            where = f"{sample.source}: {getattr(sample.mask, 'name', 'mask')}"
            if isinstance(content, UserError):
                for problem in content.problems:
                    problems.add("bad masks", f"{sample.source}: {problem}")
                continue
            size = size_of(sample.image)
            if size and sorted(size) != sorted(content.size):
                shapes = [f"{width} x {height}" for width, height in (content.size, size)]
                problems.add("bad masks", f"{where}: the mask has {shapes[0]} pixels, and its image {shapes[1]}")
            if beyond := sorted(number for number in content.pixels if not 0 <= number < known and number != ignore):
                problems.add(
                    "bad masks",
                    f"{where}: has pixels of class {listed([*map(str, beyond)], 5)}, and there are {known} "
                    f"({'task.classes' if classes else 'by the masks of data.train'}, counted from 0); "
                    "task.ignore=NUMBER leaves a number out",
                )
            elif not any(number != ignore for number in content.pixels):
                problems.add("bad masks", f"{where}: nothing in it counts, all of it is task.ignore={ignore}")


def as_text(ids: np.ndarray) -> str:
    """A mask (H, W) as a PNG in a data: URI, which a mask column takes, too."""
    kind: Any = np.uint8 if ids.max(initial=0) < 256 else np.uint16
    file = io.BytesIO()
    Image.fromarray(ids.astype(kind)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
