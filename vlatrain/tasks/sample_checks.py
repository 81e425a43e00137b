"""What a backbone cannot take of the samples, told before the first step; where a batch fails all the same, by which image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from vlatrain.backbones.base import Backbone
from vlatrain.backbones.limits import refusal, widest_ratio
from vlatrain.config import UserError
from vlatrain.data.checks import Problems
from vlatrain.data.images import identity, size_of
from vlatrain.data.lazy import pictures
from vlatrain.data.sample import Sample

NARROW = 8  # longer side to shorter one: up to it every known image processor takes an image


def check_samples(backbone: Backbone, samples: Sequence[Sample]) -> None:
    """Make sure that a backbone's processor can take samples.

    Raises:
        UserError: its image processor refuses images for their shape; row by row.
    """
    problems = Problems()
    _check_shapes(backbone, samples, problems)
    problems.raise_if_any()


@contextmanager
def images_named(backbone: Backbone, samples: Sequence[Sample], images: Sequence[Any] | None) -> Iterator[None]:
    """While inside, an error that the image processor raises for one of the samples' images says which it is.

    Raises:
        UserError: with all that the image processor refuses, by file and row.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        pairs = zip(samples, images or (), strict=False)
        refused = [(sample, why) for sample, image in pairs if (why := refusal(backbone, image))]
        if not refused:
            raise
        raise UserError(
            f"{_where(sample)}: the image processor refuses this image: {why}" for sample, why in refused
        ) from error


def _check_shapes(backbone: Backbone, samples: Sequence[Sample], problems: Problems) -> None:
    """Report images that the image processor refuses for their shape: blank ones of the narrowest shapes are tried on it."""
    if not any(_ratio(size) > NARROW for picture in pictures(samples) if (size := size_of(picture))):
        return
    first: dict[str, Sample] = {}  # by image: it is the first whose header was read when the data was checked
    for sample in samples:
        first.setdefault(identity(sample.image), sample)
    sized = ((size_of(sample.image), sample) for sample in first.values())
    narrow = [(size, sample) for size, sample in sized if size is not None and _ratio(size) > NARROW]
    refused: dict[tuple[int, int], str] = {}
    for size in sorted({size for size, _ in narrow}, key=_ratio, reverse=True):
        if not (why := refusal(backbone, Image.new("RGB", size))):
            break
        refused[size] = why
    ratio = widest_ratio(backbone) if refused else None
    for size, sample in narrow:
        if size in refused:
            limit = (
                f"takes sides of at most about {ratio:.3g} : 1" if ratio else f"refuses such a shape: {refused[size]}"
            )
            problems.add(
                "images too narrow",
                f"{_where(sample)}: {size[0]} x {size[1]} pixels, and the image processor of model={backbone.config.name} {limit}; "
                "crop or pad the image, or leave it out",
            )


def _ratio(size: tuple[int, int]) -> float:
    return max(size) / max(1, min(size))


def _where(sample: Sample) -> str:
    """Row and image."""
    name = getattr(sample.image, "name", "image")
    return ": ".join(dict.fromkeys(part for part in (sample.source, name) if part))
