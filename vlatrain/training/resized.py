"""Resized images, kept on disk where the frozen prefix is not: of large photographs, decoding takes longer than all else that is
done with them on the way to the model.

What is kept is the image as the image processor makes it before it scales and normalises values: uint8, of the size that the model
takes. Given to the processor again, it comes out as the whole image does, bit for bit; that is checked of each before it is kept.
It is kept when it is first loaded, by whichever process loads it; each has a place of its own in one file, which all map.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import transformers
from PIL import Image

from vlatrain.backbones.base import Backbone
from vlatrain.config import TrainerConfig, UserError, disk_cache
from vlatrain.config.files import kept_folder, state_of
from vlatrain.config.memo import key_of
from vlatrain.data.augment import Augmented
from vlatrain.data.images import FilePicture, identity, load_at
from vlatrain.data.lazy import joined, pictures
from vlatrain.data.sample import Picture, Sample
from vlatrain.training.prefix_cache.compute import PrefixCache
from vlatrain.training.prefix_cache.store import folders, sizes
from vlatrain.training.processes import from_main, rank

log = logging.getLogger("vlatrain")

RULES = "vlatrain-resized-1"  # raise it whenever what is kept changes
FOLDER = "resized"  # below `kept_folder()`
ABOUT, IMAGES, SUMS = "about.json", "images.bin", "sums.bin"
TRIED = 4  # images that are loaded to see what that takes
SLOW = 0.005  # seconds for loading an image, from which on keeping is thought of
GAIN = 2  # times as fast a kept image must be had
SHARE = 0.5  # of the free disk that may be used

Shape = tuple[int, int, int]  # H, W, 3


class Resized:
    """Kept images of one size.

    Args:
        folder: where.
        places: the place of each picture, by its `identity`.
        backbone: whose image processor they are for.
    """

    def __init__(self, folder: Path, places: Mapping[str, int], backbone: Backbone) -> None:
        self.folder, self.places = folder, places
        self.processor, self.side = backbone.image_processor, backbone.jpeg_side
        self.shape: Shape = tuple(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["shape"])
        self._map()

    def _map(self) -> None:
        self.images = np.memmap(self.folder / IMAGES, np.uint8, "r+").reshape(-1, *self.shape)
        self.sums = np.memmap(self.folder / SUMS, np.uint32, "r+")
        if len(self.images) != len(self.places) or len(self.sums) != len(self.places):
            raise ValueError("it is cut off")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("images", "sums")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def __call__(self, picture: Picture) -> Any:
        """The image of a picture, for the image processor: kept, or loaded and then kept."""
        place = self.places.get(identity(picture))
        if place is None:
            return load_at(picture, self.side)
        if expected := int(self.sums[place]):
            values = self.images[place].copy()
            if _sum(values) == expected:
                return Image.fromarray(values)
        image = load_at(picture, self.side)
        values = resized(self.processor, image)
        if values is None or values.shape != self.shape:
            return image
        self.images[place] = values
        self.sums[place] = _sum(values)  # behind the values: another process may look at any moment
        return Image.fromarray(values)


def keep_resized(
    backbone: Backbone,
    config: TrainerConfig,
    samples: Mapping[str, Sequence[Sample]],
    uses: Mapping[str, float],
    cache: PrefixCache | None,
    runs: int = 1,
) -> None:
    """Let the backbone's images be kept resized, if that saves time.

    Args:
        backbone: the backbone.
        config: `cache` and `cache_gb` say whether, and how much.
        samples: by split.
        uses: by split, how often each sample will be seen.
        cache: the frozen prefix that is kept; where it is one of images, these are not loaded again.
        runs: how many runs, this one included, are to come over the same images.
    """
    of_images = cache is not None and any("image" in cache.frontiers[tower].of for tower in cache.stores)
    if (
        config.cache not in ("auto", "disk")
        or of_images
        or not backbone.fixed_side
        or str(kept_folder()).startswith("~")
    ):
        return
    again = {split for split in samples if uses.get(split, 1) * runs > 1}
    if not again:
        return
    every = joined(_plain(own) for own in samples.values())
    found = from_main(_measured(backbone, every) if rank() == 0 else None)
    if found is None:
        return
    shape, said = found
    if any(isinstance(samples[split], Augmented) for split in again):
        log.info("Resized images: not kept, as images are cropped or flipped, which comes before they are made small")
        return
    keys, states = [], []
    for picture in filter(_stored, pictures(every)):
        keys.append(identity(picture))
        states.append(state_of(picture.path) if isinstance(picture, FilePicture) else None)
    about = json.dumps(backbone.image_processor.to_dict(), sort_keys=True, default=str)
    versions = (PIL.__version__, transformers.__version__)
    folder = disk_cache.place_of(FOLDER) / key_of(RULES, versions, shape, backbone.jpeg_side, about, keys, states)
    need = len(keys) * math.prod(shape)
    if not from_main(folder.is_dir() or _has_room(config, need)):
        log.info(
            "Resized images: %s; not kept, as %.1f GB have no room (trainer.cache_gb=%g is the most on disk)",
            said, need / 1e9, config.cache_gb,
        )  # fmt: skip
        return
    try:
        backbone.resized = _opened(folder, shape, {one: place for place, one in enumerate(keys)}, backbone)
    except (OSError, ValueError, KeyError) as error:
        log.warning(
            "Resized images: not kept; %s cannot be used (%s)", folder, getattr(error, "strerror", None) or error
        )
        return
    log.info("Resized images: %s; kept in %s, %.2f GB for %s", said, folder, need / 1e9, f"{len(keys):,}")


def resized(processor: Any, image: Any) -> np.ndarray | None:
    """An image as its processor makes it before values are scaled: (H, W, 3), uint8. None where the processor does not make of it
    what it makes of the image."""
    with suppress(TypeError, ValueError, KeyError, AttributeError):
        found = processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        values = np.asarray(found)
        if values.ndim != 4 or values.shape[:2] != (1, 3):
            return None
        small = np.ascontiguousarray(values[0].transpose(1, 2, 0)).astype(np.uint8)
        if not np.array_equal(small.transpose(2, 0, 1), values[0]):
            return None
        once, twice = (processor(images=[one], return_tensors="np") for one in (image, Image.fromarray(small)))
        if once.keys() == twice.keys() and all(np.array_equal(once[name], twice[name]) for name in once):
            return small
    return None


def _plain(samples: Sequence[Sample]) -> Sequence[Sample]:
    return samples.samples if isinstance(samples, Augmented) else samples


def _stored(picture: Picture) -> bool:
    """Whether it is an encoded image, which is decoded each time."""
    return getattr(picture, "header", None) is not None


def _measured(backbone: Backbone, samples: Sequence[Sample]) -> tuple[Shape, str] | None:
    """The size of what would be kept, and what to say of the time that it saves; None: it saves little, or cannot be kept."""
    tried = [one.image for one in samples[:: max(1, len(samples) // TRIED)][:TRIED] if _stored(one.image)]
    images: list[Any] = []
    small: list[np.ndarray] = []
    began = time.perf_counter()
    for picture in tried:
        with suppress(UserError):  # it is named when it is needed
            images.append(load_at(picture, backbone.jpeg_side))
    took = (time.perf_counter() - began) / max(1, len(images))
    if took < SLOW:
        return None
    for image in images:
        values = resized(backbone.image_processor, image)
        if values is None or (small and values.shape != small[0].shape):
            return None
        small.append(values)
    began = time.perf_counter()
    for values in small:
        _sum(values)
        Image.fromarray(values.copy())
    kept = (time.perf_counter() - began) / len(small)
    if took < GAIN * kept:
        return None
    height, width, channels = small[0].shape
    return (height, width, channels), f"loading one takes {1000 * took:.0f} ms, one that is kept {1000 * kept:.1f} ms"


def _has_room(config: TrainerConfig, need: int) -> bool:
    """Whether there is room for so many bytes, besides all else that is kept."""
    used = sum(map(sizes, folders())) + sum(map(disk_cache.bytes_of, disk_cache.folders(FOLDER)))
    there = next(path for path in (kept_folder(), *kept_folder().parents) if path.is_dir())
    return need <= min(config.cache_gb * 1e9 - used, SHARE * shutil.disk_usage(there).free)


def _opened(folder: Path, shape: Shape, places: Mapping[str, int], backbone: Backbone) -> Resized:
    """The kept images of a folder, which is made if there is none that can be used."""

    def reserve(into: Path) -> None:
        for name, size in ((IMAGES, math.prod(shape)), (SUMS, 4)):
            with open(into / name, "wb") as file:
                if hasattr(os, "posix_fallocate"):  # a mapped file whose disk fills up would end the process
                    os.posix_fallocate(file.fileno(), 0, len(places) * size)
                file.truncate(len(places) * size)
        about = {"shape": shape, "number": len(places), "model": backbone.config.name}
        (into / ABOUT).write_text(json.dumps(about), encoding="utf-8")

    with suppress(OSError, ValueError, KeyError):
        found = Resized(folder, places, backbone)
        disk_cache.use(folder)
        return found
    disk_cache.put(folder, reserve)
    return Resized(folder, places, backbone)


def _sum(values: np.ndarray) -> int:
    """The checksum of an image; never 0, which says that there is none."""
    return zlib.crc32(values.tobytes()) or 1


def numbers_of(folder: Path) -> dict[str, int]:
    """The number of images of a folder, by whose they are; empty if it is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return {f"images for {about['model']}": int(about["number"])}
    return {}
