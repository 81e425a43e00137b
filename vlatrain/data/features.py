"""Features that were extracted from images before: a NumPy file (`.npy`) of S x width numbers where an image's path would be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlatrain.config import ModelConfig
from vlatrain.config.errors import UserError
from vlatrain.config.families import SEVERAL_IMAGES
from vlatrain.data.images import NO_SUCH_IMAGE, BytesPicture, FilePicture, is_shown
from vlatrain.data.lazy import column, pictures
from vlatrain.data.sample import Picture, Sample

Given = Image.Image | bytes | str | Path
"""An image as somebody hands it over."""
ENDING = ".npy"
SHOWN = 5  # problems of a kind that are told one by one


class FeaturePicture(FilePicture):
    """A file of features. Two of the same path are equal.

    Args:
        path: the file.
    """

    __slots__ = ()

    def load(self) -> Any:
        """The features (S, width), fp32. Raises `UserError` naming the file."""
        if fault := self.fault():
            raise UserError(f"{self.path}: {fault}")
        return np.load(self.path, allow_pickle=False).astype(np.float32)

    def load_at(self, side: int) -> Any:
        """The features: they have no size to choose."""
        return self.load()

    def shape(self) -> tuple[int, ...]:
        """The shape that the file's header says. Raises what NumPy raises on a file that is none of its own."""
        shape: tuple[int, ...] = np.load(self.path, mmap_mode="r", allow_pickle=False).shape
        return shape

    def fault(self) -> str:
        """What is wrong with the file in a few words, or nothing."""
        try:
            found = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            return NO_SUCH_IMAGE
        except (OSError, ValueError, EOFError):
            return "not features: no NumPy file of numbers, or cut off"
        if found.ndim != 2 or 0 in found.shape:
            return f"not features: {' x '.join(map(str, found.shape)) or 'a single number'}, and not S x width"
        return "" if found.dtype.kind in "fiu" else f"not features: {found.dtype}, and not numbers"


def picture_of(path: str) -> FilePicture:
    """The picture in a file: an image, or features."""
    return FeaturePicture(path) if path.lower().endswith(ENDING) else FilePicture(path)


def picture_from(given: Given, name: str) -> Picture:
    """The picture that somebody hands over: a PIL image, encoded bytes, or the path of a file.

    Args:
        given: it.
        name: what to call one without a path in messages.

    Raises:
        UserError: it is none of these, or there is no such file.
    """
    if isinstance(given, Image.Image):
        return BytesPicture.from_image(given, name)
    if isinstance(given, bytes):
        return BytesPicture(given, name)
    if not isinstance(given, (str, Path)):
        raise UserError(f"{name}: a PIL image, bytes or a path is needed, not a {type(given).__name__}")
    if not Path(given).expanduser().is_file():
        raise UserError(f"{given}: no such file")
    return picture_of(str(Path(given).expanduser()))


def check_shown(model: ModelConfig, samples: Sequence[Sample]) -> None:
    """Make sure that samples come as the model takes them: as images, or as features of its width; with one, or with several.

    Raises:
        UserError: some do not, by file and line.
    """
    problems = [*_too_many(model, samples), *_problems(model, samples)]
    more = [f"... and {len(problems) - SHOWN:,} more of the kind"] if len(problems) > SHOWN else []
    if problems:
        raise UserError([*problems[:SHOWN], *more])


def _too_many(model: ModelConfig, samples: Sequence[Sample]) -> Iterator[str]:
    """That samples have several images, and the model takes one."""
    if model.family in SEVERAL_IMAGES:
        return
    several = [place for place, more in enumerate(column(samples, "more")) if more]
    if several:
        first = samples[several[0]]
        others = f", and {len(several) - 1:,} more" if len(several) > 1 else ""
        yield (
            f"{first.source or first.id}: {len(first.pictures)} images{others}, and model={model.name} takes one for a text; "
            "composites (tiny_composite) and models that chat (llava, qwen2_5_vl, smolvlm) take several"
        )


def _problems(model: ModelConfig, samples: Sequence[Sample]) -> Iterator[str]:
    vision = model.submodels.get("vision")
    width = model.config["vision_config"]["hidden_size"] if vision and vision.architecture == "features" else 0
    if not width and not any(isinstance(picture, FeaturePicture) for picture in pictures(samples)):
        return
    seen: set[str] = set()
    for sample in samples:
        where = f"{sample.source}: " if sample.source else ""
        for picture in sample.pictures:
            if not isinstance(picture, FeaturePicture) or picture.path not in seen:
                yield from _unlike(model, picture, where, width)
            seen.add(getattr(picture, "path", ""))


def _unlike(model: ModelConfig, picture: Picture, where: str, width: int) -> Iterator[str]:
    """What a picture has otherwise than a model takes: images, or features of a width (0: images)."""
    if not isinstance(picture, FeaturePicture):
        if width and is_shown(picture):
            name = getattr(picture, "name", "the image")
            yield f"{where}{name} is no {ENDING} file, and model/vision=features takes features that were extracted before"
    elif not width:
        yield (
            f"{where}{picture.name} holds features, and model={model.name} takes images; model=composite model/vision=features "
            "takes features"
        )
    elif (found := picture.shape()[1]) != width:
        yield (
            f"{where}{picture.name} has features of width {found}, and the model takes {width}; "
            f"model.config.vision_config.hidden_size={found} makes it take these"
        )
