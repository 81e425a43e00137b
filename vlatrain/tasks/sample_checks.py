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
from vlatrain.data.sample import Picture, Sample

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
        pairs = [
            (sample.source, picture, image)
            for sample, own in zip(samples, images or (), strict=False)
            for picture, image in zip(sample.pictures, own if isinstance(own, list) else [own], strict=True)
        ]
        refused = [(source, picture, why) for source, picture, image in pairs if (why := refusal(backbone, image))]
        if not refused:
            raise
        raise UserError(
            f"{_where(source, picture)}: the image processor refuses this image: {why}"
            for source, picture, why in refused
        ) from error


def _check_shapes(backbone: Backbone, samples: Sequence[Sample], problems: Problems) -> None:
    """Report images that the image processor refuses for their shape: blank ones of the narrowest shapes are tried on it."""
    if not any(_ratio(size) > NARROW for picture in pictures(samples) if (size := size_of(picture))):
        return
    first: dict[
        str, tuple[str, Picture]
    ] = {}  # by image: it is the first whose header was read when the data was checked
    for sample in samples:
        for picture in sample.pictures:
            first.setdefault(identity(picture), (sample.source, picture))
    sized = ((size_of(picture), source, picture) for source, picture in first.values())
    narrow = [(size, source, one) for size, source, one in sized if size is not None and _ratio(size) > NARROW]
    refused: dict[tuple[int, int], str] = {}
    for size in sorted({size for size, _, _ in narrow}, key=_ratio, reverse=True):
        if not (why := refusal(backbone, Image.new("RGB", size))):
            break
        refused[size] = why
    ratio = widest_ratio(backbone) if refused else None
    for size, source, picture in narrow:
        if size in refused:
            limit = (
                f"takes sides of at most about {ratio:.3g} : 1" if ratio else f"refuses such a shape: {refused[size]}"
            )
            problems.add(
                "images too narrow",
                f"{_where(source, picture)}: {size[0]} x {size[1]} pixels, and the image processor of "
                f"model={backbone.config.name} {limit}; crop or pad the image, or leave it out",
            )


def _ratio(size: tuple[int, int]) -> float:
    return max(size) / max(1, min(size))


def _where(source: str, picture: Picture) -> str:
    """Row and image."""
    name = getattr(picture, "name", "image")
    return ": ".join(dict.fromkeys(part for part in (source, name) if part))
