"""One sample of a vision-language data set, and the picture in it.

A sample is what a source yields and a task consumes. It holds no pixels: a `Picture` loads them when they are needed,
so that a data set of a million samples is a list of small objects, and work on the frozen prefix can be keyed by
content (`Picture.key`) without decoding anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image

IMAGE = "<image>"  # marks the place of an image in the texts of a sample with several


class Picture(Protocol):
    """An image that can be loaded. Picklable, so that data-loader workers can do the loading."""

    @property
    def key(self) -> str:
        """Identity of the content: two pictures with equal keys have equal pixels."""
        ...

    def load(self) -> Image.Image:
        """The upright RGB image, whatever mode and orientation it is stored in."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange of a conversation.

    Attributes:
        user: what the user says.
        reply: what is replied; empty if that is yet to be found.
    """

    user: str
    reply: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, or several, with what is asked or said about it.

    Attributes:
        id: unique within its split and stable over runs.
        image: the picture; of several the first.
        question: the question (VQA), else empty.
        answers: reference answers; one, or several annotators' (VQA).
        weights: training weight of each answer, same length as `answers`; empty means each occurrence counts the same.
        captions: reference captions (captioning, retrieval).
        source: where it came from, for messages: `train.jsonl:12`.
        subtask: joint training: name of the subtask that it belongs to.
        label: name of its class (classification).
        turns: the conversation about it (instruction following).
        mask: the picture of its pixels' classes (segmentation).
        boxes: where what the question names is (grounding): left, top, right, bottom of each, in shares of the upright image.
        extra: the data's other columns, as far as they hold plain values: name and value of each; nothing is learned from them.
        groups: names of those by which scores are given.
        options: the options of a question that has some, in the order in which they are shown.
        more: the pictures after the first. The texts of a sample with several may mark the place of each by `IMAGE`; without, all
            stand in front of the first text.
    """

    id: str
    image: Picture
    question: str = ""
    answers: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    captions: tuple[str, ...] = ()
    source: str = ""
    subtask: str = ""
    label: str = ""
    turns: tuple[Turn, ...] = ()
    mask: Picture | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    extra: tuple[tuple[str, Any], ...] = field(default=(), compare=False)
    groups: tuple[str, ...] = field(default=(), compare=False)
    more: tuple[Picture, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All its pictures, in order."""
        return (self.image, *self.more)


def fingerprint(samples: Iterable[Sample]) -> str:
    """What tells a set of samples from another, without reading an image: their number, and a hash of ids, texts and file names."""
    if known := getattr(samples, "fingerprint", ""):  # found when they were written to disk
        return str(known)
    digest, number = hashlib.sha256(), 0
    apart = ("image", "more", "mask", "source", "boxes", "options", "extra", "groups")
    said = [field.name for field in fields(Sample) if field.name not in apart]
    for number, sample in enumerate(samples, start=1):  # noqa: B007, the last is their number
        names = [str(getattr(one, "path", "")).rpartition("/")[2] for one in sample.pictures]
        masks = [str(getattr(sample.mask, "path", "")).rpartition("/")[2]] if sample.mask is not None else []
        digest.update(repr([*names, *(getattr(sample, field) for field in said), *masks]).encode())
        # others are as before there were boxes, and options
        digest.update(repr(sample.boxes).encode() if sample.boxes else b"")
        digest.update(repr(sample.options).encode() if sample.options else b"")
    return f"{number} samples, {digest.hexdigest()[:16]}"


def texts_of(samples: Iterable[Sample]) -> Iterator[str]:
    """Every text of the samples."""
    for sample in samples:
        said = [text for turn in sample.turns for text in (turn.user, turn.reply)]
        texts = (sample.question, *sample.options, *sample.answers, *sample.captions, sample.label, *said)
        yield from (text for text in texts if text)
