"""From whatever a file holds to upright 8-bit RGB, the same everywhere: training, evaluation, prediction and the cache.

The rules: the first frame of an animation; turned upright as EXIF says; transparency composited on white; 16-bit grey
scaled to 8 bits over its full range, not clipped; 32-bit and floating-point grey scaled from the range its values fit
in ([0, 1], [0, 255] or [0, 65535], else from the least to the greatest value). Colour profiles are not applied.

A file may be hostile: only formats that PIL decodes itself are opened (EPS would start Ghostscript), only files (a pipe would be
waited for), no image of more pixels than allowed, and no more of them at once than memory has room for.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vlatrain.config.errors import UserError

if TYPE_CHECKING:
    from vlatrain.data.sample import Picture

# Part of every key: raise it whenever a rule above changes, so that nothing cached under the old rules is used again.
RULES = b"vlatrain-rgb-1"
NO_SUCH_IMAGE = "no such image"
FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "HEIF", "PPM", "TGA", "PCX", "ICO", "SGI", "DDS",
)  # fmt: skip
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # there is a limit of our own
MOST_MEGAPIXELS = 64.0  # where nobody says otherwise
AT_ONCE = 256_000_000  # pixels that the threads of a process decode at a time; a larger image alone
BAD_IMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


class Header(NamedTuple):
    """What an image file says of itself in front of its pixels.

    Attributes:
        width: pixels, before it is turned upright.
        height: the same.
        mode: as PIL has it: RGB, L, RGBA, ...
        format: PNG, JPEG, ...
        bytes: size of the file.
        orientation: EXIF's, 1 to 8: how it is to be turned upright; 1: not at all.
    """

    width: int
    height: int
    mode: str
    format: str
    bytes: int
    orientation: int = 1


class FilePicture:
    """An image file. Two of the same path are equal.

    Args:
        path: the file.
    """

    __slots__ = ("_key", "_note", "header", "path")

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        self.header: Header | None = None
        self._key = ""
        self._note: Callable[[str], object] | None = None

    def know(self, key: str, note: Callable[[str], object] | None = None) -> None:
        """Take over the content's key, if it is known; else `note` is called with it once it is."""
        self._key, self._note = key, note

    @property
    def key(self) -> str:
        """Hash of the file's bytes, computed when first asked for. Raises `UserError` if the file cannot be read."""
        if not self._key:
            try:
                with self.open() as file:
                    self._key = _hash(file)
            except OSError as error:
                raise UserError(f"{self.path}: {explain(error)}") from error
            if self._note:
                self._note(self._key)
        return self._key

    @property
    def identity(self) -> str:
        """What tells this picture from others without reading it: its path."""
        return self.path

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self.path

    def load(self) -> Image.Image:
        """The upright RGB image. Raises `UserError` naming the file."""
        return open_rgb(Path(self.path))

    def load_at(self, side: int) -> Image.Image:
        """See `load_at`."""
        return open_rgb(Path(self.path), side=side)

    def open(self) -> BinaryIO:
        """The stored bytes, as a file to be closed. Raises `OSError`."""
        refuse_devices(self.path)
        return open(self.path, "rb")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FilePicture) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"FilePicture({self.path!r})"


class BytesPicture:
    """An encoded image in memory (a cell of a Parquet file, a row of a stream). Two of the same bytes are equal.

    Args:
        data: the encoded image (PNG, JPEG, ...).
        name: what to call it in messages.
    """

    __slots__ = ("_key", "data", "header", "name")

    def __init__(self, data: bytes, name: str = "image") -> None:
        self.data = data
        self.name = name
        self.header: Header | None = None
        self._key = ""

    def know(self, key: str) -> None:
        """Take over the content's key."""
        self._key = key

    @classmethod
    def from_image(cls, image: Image.Image, name: str = "image") -> BytesPicture:
        """A picture of a PIL image, brought to upright RGB and stored without loss."""
        buffer = io.BytesIO()
        to_rgb(image).save(buffer, "PNG", compress_level=1)
        return cls(buffer.getvalue(), name)

    @property
    def key(self) -> str:
        """Hash of the bytes, computed when first asked for."""
        if not self._key:
            self._key = _hash(io.BytesIO(self.data))
        return self._key

    @property
    def identity(self) -> str:
        """What tells this picture from others: its content."""
        return self.key

    def load(self) -> Image.Image:
        """The upright RGB image. Raises `UserError` with the picture's name."""
        return open_rgb(self.data, self.name)

    def load_at(self, side: int) -> Image.Image:
        """See `load_at`."""
        return open_rgb(self.data, self.name, side)

    def open(self) -> BinaryIO:
        """The stored bytes, as a file to be closed."""
        return io.BytesIO(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BytesPicture) and other.data == self.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"BytesPicture({self.name!r}, {len(self.data)} bytes)"


def grey() -> Image.Image:
    """A small grey image, which says nothing."""
    return Image.new("RGB", (56, 56), "grey")


class NoPicture:
    """The place of an image in a sample of text alone. What it loads as is never seen: backbones hide it.

    Args:
        identity: what tells it from others: where its sample came from.
    """

    key = "no image"  # of one content, so that the same states are kept for all
    name = "no image"

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def load(self) -> Image.Image:
        """A small grey image."""
        return grey()

    def __repr__(self) -> str:
        return f"NoPicture({self.identity!r})"


def is_shown(picture: Picture) -> bool:
    """Whether there is an image."""
    return not isinstance(picture, NoPicture)


def identity(picture: Picture) -> str:
    """What tells pictures apart at little cost: the path of a file, else the content's key."""
    return getattr(picture, "identity", None) or picture.key


def header_of(picture: Picture) -> Header | None:
    """The header of an image file, which is read once; None for what has none: what is generated, and features."""
    opener = getattr(picture, "open", None)
    if getattr(picture, "header", None) is None and opener is not None:
        try:
            with opener() as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                with opened(file) as image:
                    picture.header = Header(*image.size, image.mode, str(image.format), size, _orientation(image))  # type: ignore[attr-defined]
        except BAD_IMAGE:
            return None
    return getattr(picture, "header", None)


def size_of(picture: Picture) -> tuple[int, int] | None:
    """Width and height in pixels, before it is turned upright; None for what has no header."""
    header = header_of(picture)
    return (header.width, header.height) if header else None


def upright_size(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels of a picture as `load` gives it. Raises `UserError` if it cannot be read."""
    if (header := header_of(picture)) is None:
        return picture.load().size  # what is generated
    width, height = header.width, header.height
    return (height, width) if header.orientation > 4 else (width, height)


def picture_files(folder: str | Path) -> list[Path]:
    """The image files in a folder and below, by their ending, sorted by path.

    Raises:
        UserError: if the folder does not exist or has none.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings() and path.is_file())
    if not found:
        raise UserError(f"{folder}: no image in this folder")
    return found


@cache
def formats() -> tuple[str, ...]:
    """The formats that are opened, as this installation of PIL has them."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def endings() -> frozenset[str]:
    """How the names of files of these formats end, in lower case."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats())


def opened(stream: str | Path | BinaryIO) -> Image.Image:
    """PIL's image of a file, whose pixels have not been read. Raises what PIL raises, and `TooLargeError`."""
    image = Image.open(stream, formats=formats())
    if image.width * image.height > _allowed["megapixels"] * 1e6:
        size = f"{image.width:,} x {image.height:,}"
        image.close()
        raise TooLargeError(size, image.width * image.height / 1e6)
    return image


_allowed = {"megapixels": MOST_MEGAPIXELS}


def allow(megapixels: float) -> None:
    """Refuse images of more megapixels, from now on, in this process and those that it forks."""
    _allowed["megapixels"] = megapixels
    # PIL has a limit of its own, which is lower than what may be set here
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, int(megapixels * 1e6)) or None


class TooLargeError(ValueError):
    """An image has more pixels than allowed.

    Args:
        size: its size in words.
        megapixels: how many it has.
    """

    def __init__(self, size: str, megapixels: float) -> None:
        super().__init__(
            f"image of {size} pixels: {megapixels:,.0f} megapixels, and {_allowed['megapixels']:g} are allowed; make it smaller, "
            f"or set data.max_megapixels={math.ceil(megapixels)}"
        )


def refuse_devices(path: str | Path) -> None:
    """Refuse what is no file: who opens a pipe waits until somebody writes into it.

    Raises:
        OSError: it is none, or is not there.
    """
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # opening a folder says that it is one
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")


class _Room:
    """Room for pixels, for which threads wait."""

    def __init__(self) -> None:
        self.used, self.changed = 0, threading.Condition()

    def take(self, pixels: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + pixels <= AT_ONCE)
            self.used += pixels

    def give(self, pixels: int) -> None:
        with self.changed:
            self.used -= pixels
            self.changed.notify_all()


_room = _Room()
if hasattr(os, "register_at_fork"):  # a fork in the midst of another thread's decoding would wait for that for ever
    os.register_at_fork(after_in_child=_room.__init__)  # type: ignore[misc]


@contextmanager
def decoding(image: Image.Image) -> Iterator[None]:
    """Decode within, once there is room beside what other threads decode."""
    pixels = image.width * image.height
    _room.take(pixels)
    try:
        yield
    finally:
        _room.give(pixels)


def load_at(picture: Picture, side: int) -> Image.Image:
    """The upright RGB image of a picture; a large JPEG at a half, a quarter or an eighth of its size, no side shorter than asked.

    libjpeg scales while it decodes, which takes a fraction of the time. Pixels differ slightly from those of the whole image made
    small. 0, and what is no JPEG in a file, give the whole image.
    """
    scaled = getattr(picture, "load_at", None)
    return scaled(side) if scaled and side else picture.load()


def open_rgb(source: str | Path | bytes | BinaryIO, name: str = "", side: int = 0) -> Image.Image:
    """Decode an image to upright RGB by the rules in the module's docstring.

    Args:
        source: a file, its bytes, or an open binary file.
        name: what to call it in the error; by default the file's path.
        side: pixels that no side need have more of, see `load_at`; 0: the whole image.

    Raises:
        UserError: if there is no such file, or it is no image, or it is cut off.
    """
    if isinstance(source, str | Path):
        name = name or os.fspath(source)
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        if isinstance(stream, str | Path):
            refuse_devices(stream)
        with opened(stream) as image:
            if side and image.format == "JPEG":
                image.draft(None, (side, side))
            with decoding(image):
                return to_rgb(image)
    except BAD_IMAGE as error:
        raise UserError(f"{name or getattr(source, 'name', None) or 'image'}: {explain(error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The upright 8-bit RGB version of any PIL image, as a new image. Raises what PIL raises on bad data."""
    image.load()
    image = _upright(image)
    if image.mode[0] in "IF":  # I, I;16, I;16B, I;16L, F
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode in ("PA", "La", "RGBa") or image.has_transparency_data:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _orientation(image: Image.Image) -> int:
    """EXIF's, as far as the header tells: behind a PNG's pixels it is not looked for, which would mean to read them."""
    try:
        known = image.format != "PNG" or "exif" in image.info
        found = image.getexif().get(ExifTags.Base.Orientation, 1) if known else 1
        return found if found in range(1, 9) else 1
    except BAD_IMAGE:
        return 1


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except BAD_IMAGE:  # damaged EXIF in a sound image: common, and no reason to refuse the picture
        return image


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """[height, width] grey values of any number type -> the same in 0..255 as uint8."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        limits = [1.0, 255.0, 65535.0]
    else:
        limits = [65535.0]
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    top = next((limit for limit in limits if low >= 0 and high <= limit), None)
    if top is None:
        values, top = values - low, max(high - low, 1e-12)
    return np.floor(values * (255.0 / top) + 0.5).clip(0, 255).astype(np.uint8)


def _hash(file: BinaryIO) -> str:
    digest = hashlib.blake2b(RULES, digest_size=16)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def explain(error: BaseException) -> str:
    """What PIL or the system found wrong (one of `BAD_IMAGE`), in a user's words."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return NO_SUCH_IMAGE
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, PermissionError):
        return "no permission to read this image"
    if isinstance(error, UnidentifiedImageError):
        return "not an image (no format that can be read)"
    if isinstance(error, Image.DecompressionBombError):
        return f"image too large: {text}"
    if isinstance(error, TooLargeError):
        return text
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "not a path, which is shorter"
    if isinstance(error, OSError) and error.strerror:
        return f"image cannot be read ({error.strerror})"
    if isinstance(error, EOFError) or "truncated" in text.lower() or "unexpected end" in text.lower():
        return f"image is cut off ({text or 'unexpected end of file'})"
    return f"image cannot be decoded ({text or type(error).__name__})"
