"""Finds images by what public data sets call them by: an id in place of a file's name. Each folder is listed once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlatrain.data.images import endings

ID_COLUMNS = ("image_id", "imageId", "img_id")  # COCO's and VQA's, GQA's, and VinVL's
COCO = ("train2014", "val2014", "test2014", "test2015", "train2017", "val2017", "test2017")
FIRST = (
    ".jpg",
    ".jpeg",
    ".png",
)  # which of files that differ by their ending is the image: masks are PNGs beside JPEGs


def is_image(name: str) -> bool:
    """Whether a file's ending is one of an image."""
    return os.path.splitext(name)[1].lower() in endings()


class Finder:
    """Finds images in a folder.

    Args:
        root: the folder that image paths start from.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = os.path.expanduser(os.fspath(root))
        self._folders: dict[str, dict[str, str]] = {}  # folder below the root -> stem -> name of the image

    def has(self, path: str) -> bool:
        """Whether there is an image at a path below the root."""
        folder, name = os.path.split(path)
        return self._images(folder).get(os.path.splitext(name)[0]) == name or os.path.isfile(
            os.path.join(self.root, path)
        )

    def named(self, stem: str, folders: tuple[str, ...] = ("",)) -> str | None:
        """The path below the root of the image of a name without ending, in the first folder that has one."""
        above, stem = os.path.split(stem)
        below = (os.path.join(above, folder) for folder in folders)
        return next((os.path.join(folder, name) for folder in below if (name := self._images(folder).get(stem))), None)

    def by_id(self, identifier: Any, subset: str = "") -> tuple[str, bool]:
        """The path below the root of the image of an id: `12.jpg`, `000000000012.jpg`, `COCO_val2014_000000000012.jpg`.

        Args:
            identifier: the id.
            subset: the part of COCO that it is of, such as `val2014`; empty: any.

        Returns:
            The path, and whether there is such an image; if not, the path that it has in COCO.
        """
        subsets = (subset.replace("-dev", ""),) if subset else COCO  # VQA's test-dev is of the test images
        stems = list(_stems(str(identifier).strip(), subsets))
        for stem in stems:
            if path := self.named(stem, ("", *subsets)):
                return path, True
        return f"{stems[0]}.jpg", False

    def _images(self, folder: str) -> dict[str, str]:
        if folder not in self._folders:
            found: dict[str, str] = {}
            try:
                names = [entry.name for entry in os.scandir(os.path.join(self.root, folder)) if is_image(entry.name)]
            except OSError:
                names = []
            for name in sorted(names, key=_rank):
                found.setdefault(os.path.splitext(name)[0], name)
            self._folders[folder] = found
        return self._folders[folder]


def _stems(identifier: str, subsets: tuple[str, ...]) -> Iterator[str]:
    """The names without ending that the image of an id may have. Those of COCO's 2014 images say which part they are of."""
    if identifier.isdecimal():
        padded = f"{int(identifier):012d}"
        if len(subsets) == 1:
            yield f"COCO_{subsets[0]}_{padded}"
        yield from (identifier, padded)
        if len(subsets) > 1:
            yield from (f"COCO_{subset}_{padded}" for subset in subsets)
    else:
        yield identifier


def _rank(name: str) -> tuple[int, str]:
    ending = os.path.splitext(name)[1].lower()
    return FIRST.index(ending) if ending in FIRST else len(FIRST), name
