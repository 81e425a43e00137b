"""What a cell with an image may hold: a path below the image root, a file: or data: URI, base64 text, encoded bytes, a PIL image,
an object with one of these under `bytes` or `path`; or a list of one of them."""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from vlatrain.data.cells import CellError, clipped, kind, parse_list
from vlatrain.data.features import picture_of
from vlatrain.data.finder import Finder
from vlatrain.data.images import BytesPicture, FilePicture
from vlatrain.data.sample import Picture

BASE64 = re.compile(r"[A-Za-z0-9+/_-][A-Za-z0-9+/_\r\n-]*={0,2}\s*")
SHORTEST = 64  # characters of base64 text; a path without an ending, such as an id, is shorter
SHOWN = 24  # characters of base64 text in a message


class SeveralImagesError(Exception):
    """There are more images than are taken.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


def cells(value: Any, delimited: bool = False) -> list[Any]:
    """The images in a cell: none, one, or those in a list. Raises `CellError`.

    Args:
        value: the cell.
        delimited: whether a text may be a list.
    """
    if delimited and isinstance(value, str):
        value = parse_list(value)
    if isinstance(value, list | tuple):
        return [image for item in value for image in cells(item)]
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, float) and math.isnan(value):  # how pandas writes that there is none
        return []
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):  # how the hub's libraries store images
        inner = value.get("bytes") or value.get("path")
        return [inner] if inner else []
    return [value]


class Pictures:
    """The pictures of rows; of the same path it gives the same.

    Args:
        root: the folder that paths are relative to.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._finder = Finder(root or ".")
        self._known: dict[str, FilePicture] = {}

    def one(self, images: Sequence[Any], source: str) -> Picture:
        """The picture in the cells of a row, from `cells`.

        Raises:
            SeveralImagesError: there are several.
            CellError: there is none, or it is none.
        """
        return self.of([images], source, 1)[0]

    def of(self, places: Sequence[Sequence[Any]], source: str, most: int) -> tuple[Picture, ...]:
        """The pictures of a row, in order. One that is named again and again is one.

        Args:
            places: what each place that may hold images has, from `cells`: columns, and a conversation.
            source: where the row is, for messages.
            most: so many are taken.

        Raises:
            SeveralImagesError: there are more.
            CellError: there is none, or one is none, or two places have different ones.
        """
        held = [[*images] for images in places if images]
        if not held:
            raise CellError("empty image")
        every = [image for images in held for image in images]
        if all(_same(image, every[0]) for image in every[1:]):  # a cell and a message may name the same
            return (self._picture(every[0], source),)
        if most == 1 or len(held[0]) > most:
            raise SeveralImagesError(len(held[0]) if len(held) == 1 else len(every))
        if any(len(images) != len(held[0]) or not all(map(_same, images, held[0])) for images in held[1:]):
            raise CellError("two places of the row have different images: put all of them into one")
        return tuple(self._picture(image, source) for image in held[0])

    def _picture(self, value: Any, source: str) -> Picture:
        if isinstance(value, bytes | bytearray | memoryview) and len(value):
            return BytesPicture(bytes(value), source)
        if isinstance(value, str):
            return self._from_text(value.strip())
        if hasattr(value, "getexif"):  # a PIL image
            return BytesPicture.from_image(value, source)
        if isinstance(value, bytes | bytearray | memoryview):
            raise CellError("empty image")
        raise CellError(f"expected an image's path, found {kind(value)}")

    def _from_text(self, value: str) -> Picture:
        scheme = value[:8].partition(":")[0].lower()
        if scheme == "data":
            head, comma, encoded = value.partition(",")
            if not comma:
                raise CellError(f"a data: URI without a comma: {clipped(value)}")
            if head.rstrip().lower().endswith(";base64"):
                return _decoded(encoded)
            return BytesPicture(unquote(encoded, "latin-1").encode("latin-1"), f"a {clipped(head)} URI")
        if scheme == "file":
            return self._at(url2pathname(urlsplit(value).path))
        if "://" in value:
            raise CellError(f"'{clipped(value)}' is a URL, and images are read from disk: download them first")
        if len(value) >= SHORTEST and "." not in value and BASE64.fullmatch(value):
            return _decoded(value)
        return self._at(value)

    def _at(self, value: str) -> FilePicture:
        """The picture at a path. Backslashes are separators where there is no such file; an ending may be left out."""
        path = self._joined(value)
        if path in self._known:
            return self._known[path]
        found = path
        if "\\" in value and not os.path.exists(path):
            found = self._joined(value.replace("\\", "/"))
        if not os.path.splitext(found)[1] and not os.path.exists(found):
            ended = self._finder.named(os.path.relpath(found, self.root or "."))
            found = self._joined(ended) if ended else found
        self._known[path] = self._known.setdefault(found, picture_of(found))
        return self._known[path]

    def _joined(self, value: str) -> str:
        return os.path.normpath(os.path.join(self.root, os.path.expanduser(value)))


def _same(image: Any, again: Any) -> bool:
    return isinstance(image, str | bytes) and type(image) is type(again) and image == again


def _decoded(encoded: str) -> BytesPicture:
    """The picture in base64 text. What is cut off is decoded as far as it goes; the check of all pictures then finds it broken."""
    plain = "".join(unquote(encoded).split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    plain = plain[: len(plain) - (len(plain) % 4 == 1)]
    name = f"base64 text '{encoded[:SHOWN]}...'"
    try:
        return BytesPicture(base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True), name)
    except binascii.Error:
        raise CellError(f"{name} that cannot be decoded") from None
