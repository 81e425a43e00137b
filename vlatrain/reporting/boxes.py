"""Images with boxes drawn on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from vlatrain.config.errors import UserError

COLOUR, BACK = (230, 30, 90), (255, 255, 255)
LONGEST = 80  # characters of a file's name
THICK = 250  # pixels of the shorter side for each pixel of a line


def draw(image: Image.Image, boxes: Sequence[tuple[Sequence[float], float]]) -> Image.Image:
    """A copy of an image with boxes, left, top, right, bottom in its pixels, each with its score."""
    drawn = image.convert("RGB")
    pen, line = ImageDraw.Draw(drawn), max(1, min(image.size) // THICK)
    for (left, top, right, bottom), score in boxes:
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=COLOUR, width=line)
        if min(image.size) >= THICK:  # else the number would cover what it is of
            said, corner = f"{score:.2f}", (left + line, top + line)
            pen.rectangle(pen.textbbox(corner, said), fill=BACK)
            pen.text(corner, said, fill=COLOUR)
    return drawn


class Drawings:
    """A folder of images with boxes.

    Args:
        folder: the folder; made when something is drawn.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._names = folder, set[str]()

    def add(self, name: str, image: Image.Image, boxes: Sequence[tuple[Sequence[float], float]]) -> str:
        """Draw boxes on an image and write it; returns its path. Raises `UserError` if it cannot be written."""
        plain = re.sub(r"[^\w.-]+", "_", Path(name).stem if Path(name).suffix else name).strip("_")[:LONGEST] or "image"
        number, chosen = 1, plain
        while chosen in self._names:
            number += 1
            chosen = f"{plain}-{number}"
        self._names.add(chosen)
        path = self.folder / f"{chosen}.png"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            draw(image, boxes).save(path)
        except OSError as error:
            raise UserError(
                f"draw={self.folder}: {path.name} could not be written ({error.strerror or error})"
            ) from error
        return str(path)
