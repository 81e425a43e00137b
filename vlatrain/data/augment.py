"""Random crops and flips of training images, as pictures of their own, each found again by its number.

A view of a picture is a pure function of the picture's content, the settings and a number. Drawn anew each time (`data.views=0`)
there is no end of them; `data.views=k` draws from the same k views, so that what a frozen prefix makes of each can be kept.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from PIL import Image

from vlatrain.config import DataConfig, TrainConfig
from vlatrain.config.joint import subtasks
from vlatrain.data.images import is_shown, load_at
from vlatrain.data.sample import Picture, Sample

RATIO = 4 / 3  # the widest side to the other that a crop has; the inverse the narrowest
TRIES = 10
MANY = 2**31


@dataclass(frozen=True, slots=True)
class View:
    """A crop of a picture, perhaps flipped, as for Inception (Szegedy et al., CVPR 2015).

    Attributes:
        picture: the picture.
        number: which of its views.
        crop: least share of the area that is left; 1: all of it is.
        flip: probability of mirroring it.
    """

    picture: Picture
    number: int
    crop: float
    flip: float

    @property
    def key(self) -> str:
        """Identity of the content."""
        about = f"{self.picture.key} view {self.number} crop {self.crop} flip {self.flip}"
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
        image, draw = load_at(self.picture, math.ceil(side / math.sqrt(self.crop))), random.Random(self.key)
        if self.crop < 1:
            image = image.crop(_box(*image.size, self.crop, draw))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < self.flip else image


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
    return replace(sample, image=View(sample.image, number, settings.crop, settings.flip))
