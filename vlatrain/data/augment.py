"""Random crops and flips of training images, as pictures of their own, each found again by its number.

A view of a picture is a pure function of the picture's content, the settings and a number. Drawn anew each time (`data.views=0`)
there is no end of them; `data.views=k` draws from the same k views, so that what a frozen prefix makes of each can be kept.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from PIL import Image

from vlatrain.config import DataConfig, TrainConfig
from vlatrain.config.joint import subtasks
from vlatrain.data.boxes import Box
from vlatrain.data.images import is_shown, load_at, upright_size
from vlatrain.data.sample import Picture, Sample

RATIO = 4 / 3  # the widest side to the other that a crop has; the inverse the narrowest
TRIES = 10
SIDE, SIDES = re.compile(r"\b(?:left|right)", re.IGNORECASE), {"left": "right", "right": "left"}
MANY = 2**31


@dataclass(frozen=True, slots=True)
class View:
    """A crop of a picture, perhaps flipped, as for Inception (Szegedy et al., CVPR 2015).

    Attributes:
        picture: the picture.
        number: which of its views.
        crop: least share of the area that is left; 1: all of it is.
        flip: probability of mirroring it.
        keep: what a crop must not cut: left, top, right, bottom in shares of the picture; None: nothing. Then its pixels are
            those of the whole picture, never of one decoded small, so that it is known without them where the crop lies.
    """

    picture: Picture
    number: int
    crop: float
    flip: float
    keep: Box | None = None

    @property
    def key(self) -> str:
        """Identity of the content."""
        about = f"{self.picture.key} view {self.number} crop {self.crop} flip {self.flip}"
        about += f" keep {self.keep}" if self.keep else ""
        return hashlib.blake2b(about.encode(), digest_size=16).hexdigest()

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return getattr(self.picture, "name", "image")

    def load(self) -> Image.Image:
        """The upright RGB image. Raises `UserError` naming the picture."""
        return self.load_at(0)

    def load_at(self, side: int) -> Image.Image:
        """See `vlatrain.data.images.load_at`; what a crop leaves has so many pixels."""
        image = load_at(self.picture, 0 if self.keep else math.ceil(side / math.sqrt(self.crop)))
        region, mirrored = self._drawn(*image.size)
        if self.crop < 1:
            image = image.crop(region)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    def placed(self, boxes: Sequence[Box]) -> tuple[tuple[Box, ...], bool]:
        """Boxes of the picture, which `keep` holds, where they are in the view, in shares of it; and whether it is mirrored."""
        width, height = upright_size(self.picture)
        (left, top, right, bottom), mirrored = self._drawn(width, height)
        across, down = right - left, bottom - top
        found: list[Box] = []
        for box in boxes:
            start, end = ((edge * width - left) / across for edge in (box[0], box[2]))
            high, low = ((edge * height - top) / down for edge in (box[1], box[3]))
            found.append((1 - end, high, 1 - start, low) if mirrored else (start, high, end, low))
        return tuple(found), mirrored

    def _drawn(self, width: int, height: int) -> tuple[tuple[int, int, int, int], bool]:
        """Left, top, right and bottom in pixels of what is left of a picture of a size, and whether it is mirrored."""
        draw = random.Random(self.key)
        left, top, right, bottom = 0, 0, width, height
        if self.crop < 1:
            left, top, right, bottom = _box(width, height, self.crop, draw)
        if self.keep:
            left, top = min(left, math.floor(self.keep[0] * width)), min(top, math.floor(self.keep[1] * height))
            right, bottom = max(right, math.ceil(self.keep[2] * width)), max(bottom, math.ceil(self.keep[3] * height))
        return (left, top, right, bottom), draw.random() < self.flip


def _box(width: int, height: int, least: float, draw: random.Random) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop with a share of the area and a ratio of sides drawn at random."""
    for _ in range(TRIES):
        area = width * height * draw.uniform(least, 1)
        ratio = math.exp(draw.uniform(-math.log(RATIO), math.log(RATIO)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = draw.randint(0, width - across), draw.randint(0, height - down)
            return left, top, left + across, top + down
    return 0, 0, width, height


class Augmented(Sequence[Sample]):
    """Samples, each with a view of its image drawn whenever it is asked for, by torch's generator.

    Args:
        samples: the samples.
        settings: the settings of the data, by subtask of a joint run; under an empty name for any other run.
    """

    def __init__(self, samples: Sequence[Sample], settings: Mapping[str, DataConfig]) -> None:
        self.samples, self.settings = samples, settings

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return Augmented(self.samples[index], self.settings)
        sample = self.samples[index]
        settings = self.settings[sample.subtask]
        if not augments(settings):
            return sample
        return _viewed(sample, settings, int(torch.randint(settings.views or MANY, ()).item()))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def every(self) -> list[Sample] | None:
        """Every sample with every view that it may be drawn with; None where there is no end of them."""
        found = []
        for sample in self.samples:
            settings = self.settings[sample.subtask]
            if not augments(settings):
                found.append(sample)
            elif not settings.views:
                return None
            else:
                found += [_viewed(sample, settings, number) for number in range(settings.views)]
        return found


def augmented(samples: Sequence[Sample], config: TrainConfig) -> Sequence[Sample]:
    """Training samples as a configuration has them: with crops and flips, or as they are."""
    settings = {name: subtask.data for name, subtask in subtasks(config).items()}
    return Augmented(samples, settings) if any(map(augments, settings.values())) else samples


def augments(settings: DataConfig) -> bool:
    """Whether training images are to be cropped or flipped."""
    return settings.crop < 1 or settings.flip > 0


def _viewed(sample: Sample, settings: DataConfig, number: int) -> Sample:
    if not is_shown(sample.image):
        return sample
    if not sample.boxes:
        first, *rest = (View(one, number, settings.crop, settings.flip) for one in sample.pictures)
        return replace(sample, image=first, more=tuple(rest))
    lefts, tops, rights, bottoms = zip(*sample.boxes, strict=True)
    view = View(sample.image, number, settings.crop, settings.flip, (min(lefts), min(tops), max(rights), max(bottoms)))
    boxes, mirrored = view.placed(sample.boxes)
    return replace(
        sample, image=view, boxes=boxes, question=other_side(sample.question) if mirrored else sample.question
    )


def other_side(text: str) -> str:
    """What an expression says of a mirrored image: left is right there, and right is left. As in MDETR's code (Kamath et al., ICCV
    2021), though of words and their beginnings (leftmost), and not of "bright"."""
    return SIDE.sub(lambda found: SIDES[found[0].lower()], text)
