"""Small copies of images inside a page, as many as it has room for."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from colorsys import hls_to_rgb
from pathlib import Path

import numpy as np
from PIL import Image

from vlatrain.config import UserError
from vlatrain.data.images import FilePicture, load_at, upright_size
from vlatrain.data.sample import Picture

SIDE = 224  # pixels of the longer side
PLAIN = 96  # images up to this side are kept without loss
MOST, MOST_BYTES = 500, 11_000_000  # thumbnails of a page, and what they take
LIGHTNESS = (0.5, 0.32, 0.7)  # of the colours of classes, seven hues each
OPACITY = 0.85
Pictures = Callable[[str], tuple[Picture, ...]]
"""The pictures of a sample by its id, where they are no files."""


def colour_of(number: int) -> tuple[int, int, int, int]:
    """The colour of a class in masks, as RGBA: far from those of the classes before it, and legible on light and dark. The first,
    which is most often the background, has none."""
    if number == 0:
        return (0, 0, 0, 0)
    hue = (number - 1) * 0.29 % 1.0  # so that 23 classes are as far apart as they can be
    red, green, blue = hls_to_rgb(hue, LIGHTNESS[(number - 1) // 7 % len(LIGHTNESS)], 0.85)
    return (round(255 * red), round(255 * green), round(255 * blue), round(255 * OPACITY))


class Thumbnails:
    """The images of a page, each once.

    Attributes:
        urls: `data:` URLs, by place.
        sizes: width and height in pixels of what each is of.
        beyond: images for which there was no room.
        missing: images that could not be read.
        classes: the numbers of the classes in masks.
    """

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.urls: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.beyond = self.missing = self.bytes = 0
        self.classes: set[int] = set()
        self._places: dict[str, int | None] = {}

    def of_file(self, path: Path) -> int | None:
        """The place of an image file; None: it cannot be read, or there is no room."""
        return self._of(str(path), lambda: FilePicture(path))

    def of_picture(self, name: str, picture: Picture) -> int | None:
        """The same of a picture that is no file, by a name of its own."""
        return self._of(name, lambda: picture)

    def of_mask(self, url: str) -> int | None:
        """The same of a mask, as predictions have it, in colours to be laid over its image."""
        if url in self._places:
            return self._places[url]
        try:
            with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as stored:
                ids = np.asarray(stored)  # (H, W)
        except (OSError, ValueError):
            self.missing += 1
            return None
        numbers, places = np.unique(ids, return_inverse=True)
        colours = np.array([*map(colour_of, numbers.tolist())], dtype=np.uint8)[places.reshape(ids.shape)]  # (H, W, 4)
        place = self._add(url, Image.fromarray(colours), (ids.shape[1], ids.shape[0]))
        if place is not None:
            self.classes |= set(numbers.tolist())
        return place

    def _of(self, name: str, picture: Callable[[], Picture]) -> int | None:
        if name in self._places:
            return self._places[name]
        if self._is_full():
            self.beyond += 1
            return None
        try:
            size = upright_size(picture())
            image = load_at(picture(), SIDE)
        except (UserError, OSError, ValueError):
            self.missing += 1
            self._places[name] = None
            return None
        return self._add(name, image, size)

    def _is_full(self) -> bool:
        return len(self.urls) >= self.most or self.bytes >= self.most_bytes

    def _add(self, name: str, image: Image.Image, size: tuple[int, int]) -> int | None:
        if self._is_full():
            self.beyond += 1
            return None
        is_mask = image.mode == "RGBA"  # whose colours are classes, and not to be mixed
        image.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST if is_mask else Image.Resampling.BICUBIC)
        stream, lossless = io.BytesIO(), is_mask or max(image.size) <= PLAIN
        image.save(stream, "PNG" if lossless else "JPEG", **({"optimize": True} if lossless else {"quality": 78}))
        url = f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"
        self.bytes += len(url)
        self.urls.append(url)
        self.sizes.append(size)
        self._places[name] = len(self.urls) - 1
        return len(self.urls) - 1
