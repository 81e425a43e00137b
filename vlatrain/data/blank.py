"""What texts alone tell: a grey image in place of every one, to learn without images, or to ask a trained run without them
(`data.images=blank`). A score that is reached so says nothing about seeing (Goyal et al., "Making the V in VQA Matter", CVPR 2017).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from vlatrain.config import TrainConfig
from vlatrain.config.joint import subtasks
from vlatrain.config.memo import key_of
from vlatrain.data.images import grey, identity
from vlatrain.data.lazy import Lazy, column, select
from vlatrain.data.sample import Picture, Sample, fingerprint

log = logging.getLogger("vlatrain")


@dataclass(frozen=True, slots=True)
class BlankPicture:
    """A grey image in place of a picture, whose name it has.

    Attributes:
        picture: the picture.
    """

    picture: Picture

    key = "a grey image"  # of one content, so that the same states are kept for all

    @property
    def identity(self) -> str:
        """What tells it from others, its picture among them: a joint run may show that in another subtask."""
        return f"{self.key} for {identity(self.picture)}"

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return str(getattr(self.picture, "name", "image"))

    @property
    def path(self) -> str:
        """The picture's file. Raises `AttributeError` where it has none."""
        return str(self.picture.path)  # type: ignore[attr-defined]

    def load(self) -> Image.Image:
        """A small grey image, of features, too."""
        return grey()


class Blanked(Lazy):
    """Samples, each with grey images in place of its own.

    Args:
        samples: the samples.
        among_subtasks: those of a joint run whose samples they are; any other run has an empty name.
    """

    def __init__(self, samples: Sequence[Sample], among_subtasks: Set[str]) -> None:
        self.samples, self.among_subtasks = samples, among_subtasks

    def __len__(self) -> int:
        return len(self.samples)

    def among(self, places: np.ndarray) -> Iterator[Sample]:
        """The samples at some places, from 0 on."""
        for one in select(self.samples, places):
            first, *more = (BlankPicture(picture) for picture in one.pictures)
            yield replace(one, image=first, more=tuple(more)) if one.subtask in self.among_subtasks else one

    def column_among(self, field: str, places: np.ndarray) -> Iterator[Any]:
        """What the samples at some places have in a field."""
        if field in ("image", "more"):
            return (getattr(one, field) for one in self.among(places))
        return column(select(self.samples, places), field)

    def pictures_among(self, places: np.ndarray) -> Iterator[Picture]:
        """Each distinct picture of the samples at some places."""
        return iter({identity(one): one for sample in self.among(places) for one in sample.pictures}.values())

    @property
    def stamp(self) -> str:
        """A hash of which samples these are."""
        stamp = self.samples.stamp if isinstance(self.samples, Lazy) else fingerprint(self.samples)
        return key_of("blank", stamp, sorted(self.among_subtasks))

    @property
    def fingerprint(self) -> str:
        """That of the samples: they are the same."""
        return fingerprint(self.samples)


def as_seen(samples: Mapping[str, Sequence[Sample]], config: TrainConfig) -> dict[str, Sequence[Sample]]:
    """By split, samples as a model is to see them: with their images, or with grey ones (`data.images=blank`), and say it."""
    blank = {name for name, subtask in subtasks(config).items() if subtask.data.images == "blank"}
    if not blank:
        return {**samples}
    log.info(
        "data.images=blank: a grey image is in place of every one%s", f" of {', '.join(blank)}" if any(blank) else ""
    )
    return {split: Blanked(own, blank) for split, own in samples.items()}
