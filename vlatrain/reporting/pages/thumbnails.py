"""Small copies of images inside a page, as many as it has room for."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vlatrain.config import UserError
from vlatrain.data.images import FilePicture, load_at, upright_size
from vlatrain.data.sample import Picture

SIDE = 224  # pixels of the longer side
PLAIN = 96  # images up to this side are kept without loss
MOST, MOST_BYTES = 500, 11_000_000  # thumbnails of a page, and what they take
HUES = [(0, 0, 0, 0),
    (230, 60, 60, 150), (60, 120, 230, 150), (40, 170, 90, 150), (230, 160, 30, 150), (150, 80, 210, 150), (30, 180, 190, 150),
]  # fmt: skip
Pictures = Callable[[str], tuple[Picture, ...]]
"""The pictures of a sample by its id, where they are no files."""


class Thumbnails:
    """The images of a page, each once.

    Attributes:
        urls: `data:` URLs, by place.
        sizes: width and height in pixels of what each is of.
        beyond: images for which there was no room.
        missing: images that could not be read.
    """

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.urls: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.beyond = self.missing = self.bytes = 0
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
                classes = stored.convert("L")
        except (OSError, ValueError):
            self.missing += 1
            return None
        hues = [HUES[0] if number == 0 else HUES[1 + (number - 1) % (len(HUES) - 1)] for number in range(256)]
        colours = np.array(hues, dtype=np.uint8)[np.asarray(classes)]  # (H, W, 4)
        return self._add(url, Image.fromarray(colours), classes.size)

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
        image.thumbnail((SIDE, SIDE))
        stream, lossless = io.BytesIO(), image.mode == "RGBA" or max(image.size) <= PLAIN
        image.save(stream, "PNG" if lossless else "JPEG", **({"optimize": True} if lossless else {"quality": 78}))
        url = f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"
        self.bytes += len(url)
        self.urls.append(url)
        self.sizes.append(size)
        self._places[name] = len(self.urls) - 1
        return len(self.urls) - 1
