"""What is asked about images from Python, and what is found of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vlatrain.config import UserError
from vlatrain.data.features import Given, picture_from
from vlatrain.data.sample import Picture
from vlatrain.tasks.base import Answer


@dataclass(frozen=True)
class Asked:
    """Images that are asked about.

    Attributes:
        several: whether there was a list of them.
        pictures: the images.
        names: of each its path, or its number.
        questions: of each its question, or None.
    """

    several: bool
    pictures: list[Picture]
    names: list[str]
    questions: list[str | None]

    @classmethod
    def of(cls, images: Given | Sequence[Given], question: str | Sequence[str] | None) -> Asked:
        """An image or several, with a question for all or one for each.

        Raises:
            UserError: there are more or fewer questions than images, or an image cannot be read.
        """
        several = not isinstance(images, (str, bytes, Path)) and isinstance(images, Sequence)
        given = cast("Sequence[Given]", images if several else [images])
        questions = [question] * len(given) if question is None or isinstance(question, str) else list(question)
        if len(questions) != len(given):
            raise UserError(f"{len(questions)} questions for {len(given)} images: one for all, or one for each")
        pictures = [picture_from(image, f"image {number}") for number, image in enumerate(given)]
        names = [str(getattr(picture, "path", number)) for number, picture in enumerate(pictures)]
        return cls(several, pictures, names, [*questions])


@dataclass(frozen=True)
class Hit:
    """One answer, caption or search result.

    Attributes:
        text: the answer, the class, the caption, the reply, the text found, or the name of the image found.
        score: probability (answers, classes; see `Vqa.answer` for several beams), that of a token on average (captions and replies,
            see `vlatrain.backbones.writing.Written`; None: the backbone does not say), cosine similarity in [-1, 1] or matching
            log-odds (search), share of the image (segmentation).
        mask: segmentation: the class of each pixel of the image as the tower is given it, a PNG in a data: URI.
        box: of what has a place, left, top, right, bottom in pixels of the upright image; else None.
    """

    text: str
    score: float | None
    mask: str = ""
    box: tuple[float, float, float, float] | None = None


def hits_of(answers: Sequence[Answer]) -> list[Hit]:
    """A task's answers, best first, as hits."""
    return [Hit(answer, None) if isinstance(answer, str) else _hit(*answer) for answer in answers]


def _hit(text: str, score: float | None, place: str | tuple[float, float, float, float] | None = None) -> Hit:
    """A hit with where it is: a mask, or a box."""
    return Hit(text, score, place) if isinstance(place, str) else Hit(text, score, box=place)
