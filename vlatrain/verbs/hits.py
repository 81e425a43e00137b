"""What is found of a sample that is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlatrain.tasks.base import Answer


@dataclass(frozen=True)
class Hit:
    """One answer, caption or search result.

    Attributes:
        text: the answer, the class, the caption, the reply, the text found, or the name of the image found.
        score: probability (answers, classes; see `Vqa.answer` for several beams), cosine similarity in [-1, 1] or matching log-odds
            (search), share of the image (segmentation); None for captions and replies.
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


def _hit(text: str, score: float, place: str | tuple[float, float, float, float] | None = None) -> Hit:
    """A hit with where it is: a mask, or a box."""
    return Hit(text, score, place) if isinstance(place, str) else Hit(text, score, box=place)
