"""Samples as Arrow files in a folder, mapped into memory: processes share them, and nothing is read before it is asked for.

A folder has a stream of Arrow (as `datasets` writes it) for each split, one for the pictures, each of which is there once, and
`about.json`. What is a column, and what stands in the latter, is in `vlatrain.data.arrow_columns`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow

from vlatrain.config.files import write_manifest
from vlatrain.data.arrow_columns import NotStorableError, Same, read_columns, write_columns
from vlatrain.data.features import FeaturePicture
from vlatrain.data.images import BytesPicture, FilePicture, Header, NoPicture, identity
from vlatrain.data.lazy import Lazy
from vlatrain.data.sample import Picture, Sample, fingerprint

ABOUT, PICTURES = "about.json", "pictures"
AT_ONCE = 4096  # samples that are built at a time where many are
RECENT = 16_384  # pictures that are held
KINDS = (FilePicture, FeaturePicture, BytesPicture, NoPicture)
FILE, FEATURES, BYTES, NONE = range(len(KINDS))
SHOWN = ("image", "mask")  # fields that hold pictures: their columns are numbers of these
MORE = "more"  # the field that holds several: tuples of numbers
NOTHING = -1  # number of the mask of a sample without one; number in a header that there is not
FIELDS = [field.name for field in fields(Sample)]
PLAIN = [name for name in FIELDS if name not in SHOWN]
NO_HEADER = Header(**{name: "" if name in ("mode", "format") else NOTHING for name in Header._fields})  # type: ignore[arg-type]


class Album:
    """The pictures of a folder. The content hash of a file is remembered, as pictures are built again and again.

    Args:
        folder: the folder.
        about: what its `about.json` says.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.columns = read_columns(folder, PICTURES, about)
        self.number = int(about["numbers"][PICTURES])
        self.keys: np.ndarray | None = None
        self.recent: dict[int, Picture] = {}

    def __reduce__(self) -> Any:
        return _album, (self.folder,)

    def __len__(self) -> int:
        return self.number

    def among(self, numbers: Sequence[int]) -> list[Picture]:
        """The pictures of some numbers; of the same number it is the same."""
        new = np.array([number for number in dict.fromkeys(numbers) if number not in self.recent], dtype=np.int64)
        if len(self.recent) + len(new) > RECENT:
            self.recent.clear()
            new = np.array([*dict.fromkeys(numbers)], dtype=np.int64)
        if len(new):
            values = {name: column.among(new) for name, column in self.columns.items()}
            for place, number in enumerate(new.tolist()):
                self.recent[number] = self._built(number, {name: own[place] for name, own in values.items()})
        return [self.recent[number] for number in numbers]

    def _built(self, number: int, values: Mapping[str, Any]) -> Picture:
        if values["kind"] == NONE:
            return NoPicture(values["path"])
        picture: FilePicture | BytesPicture
        if values["kind"] == BYTES:
            picture = BytesPicture(values["data"], values["name"])
            picture.know(values["key"])
        else:
            picture = (FeaturePicture if values["kind"] == FEATURES else FilePicture)(values["path"])
            picture.know("" if self.keys is None else self.keys[number].decode(), partial(self._remember, number))
        if values["width"] != NOTHING:
            picture.header = Header(**{name: values[name] for name in Header._fields})
        return picture

    def _remember(self, place: int, key: str) -> None:
        if self.keys is None:
            self.keys = np.zeros(self.number, "S32")
        self.keys[place] = key.encode()

    def files(self) -> Iterator[tuple[str, list[int]]]:
        """Path, time of the last change and size of each picture in a file, as they were when the folder was written."""
        for places in _blocks(np.arange(self.number)):
            some = [self.columns[name].among(places) for name in ("kind", "path", "changed", "size")]
            for kind, path, changed, size in zip(*some, strict=True):
                if kind in (FILE, FEATURES):
                    yield path, [changed, size]


class Mapped(Lazy):
    """The samples of a split.

    Args:
        folder: the folder; its name is the stamp.
        split: the split.
        about: what its `about.json` says.
        album: its pictures.
    """

    def __init__(self, folder: Path, split: str, about: Mapping[str, Any], album: Album) -> None:
        self.folder, self.split, self.album = folder, split, album
        self.columns = read_columns(folder, split, about)
        self.number = int(about["numbers"][split])
        self._fingerprint = str(about["fingerprints"][split])

    def __reduce__(self) -> Any:
        return _split, (self.folder, self.split)

    def __len__(self) -> int:
        return self.number

    @property
    def stamp(self) -> str:
        """The folder, which is named by the state of all files, and the split."""
        return f"{self.folder.name} {self.split}"

    @property
    def fingerprint(self) -> str:
        """What was found when the folder was written."""
        return self._fingerprint

    def among(self, places: np.ndarray) -> Iterator[Sample]:
        """The samples at some places."""
        for block in _blocks(places):
            yield from map(Sample, *(self._values(field, block) for field in FIELDS))

    def column_among(self, field: str, places: np.ndarray) -> Iterator[Any]:
        """What the samples at some places have in a field."""
        for block in _blocks(places):
            yield from self._values(field, block)

    def _values(self, field: str, places: np.ndarray) -> list[Any]:
        values = self.columns[field].among(places)
        if field == MORE and any(values):
            return [tuple(self.album.among(numbers)) for numbers in values]
        if field not in SHOWN:
            return values
        if NOTHING not in values:
            return [*self.album.among(values)]
        return [None if number == NOTHING else self.album.among([number])[0] for number in values]

    def pictures_among(self, places: np.ndarray) -> Iterator[Picture]:
        """The distinct pictures of the samples at some places."""
        numbers = np.asarray(self.columns["image"].among(places), dtype=np.int64)
        if not isinstance(self.columns[MORE], Same):  # else none has several
            each = zip(numbers.tolist(), self.columns[MORE].among(places), strict=True)
            numbers = np.array([number for one, more in each for number in (one, *more)], dtype=np.int64)
        first = np.sort(np.unique(numbers, return_index=True)[1])
        for block in _blocks(numbers[first]):
            yield from self.album.among(block.tolist())


def _blocks(places: np.ndarray) -> Iterator[np.ndarray]:
    return (places[start : start + AT_ONCE] for start in range(0, len(places), AT_ONCE))


# -- reading --


def opened(folder: Path) -> tuple[dict[str, Mapped], dict[str, Any]]:
    """The samples in a folder by split, and what is said of them.

    Raises:
        OSError, ValueError, KeyError, pyarrow.ArrowException: there is none, or it is damaged.
    """
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    album = Album(folder, about)
    return {split: Mapped(folder, split, about, album) for split in about["fingerprints"]}, about


def _album(folder: Path) -> Album:
    return Album(folder, json.loads((folder / ABOUT).read_text(encoding="utf-8")))


def _split(folder: Path, split: str) -> Mapped:
    return opened(folder)[0][split]


# -- writing --


def write(
    folder: Path,
    samples: Mapping[str, Sequence[Sample]],
    others: Sequence[Picture],
    state_of: Any,
    said: Sequence[tuple[int, str]],
) -> None:
    """Write samples into an empty folder.

    Args:
        folder: the folder.
        samples: by split.
        others: pictures of samples that are left out, whose files are to be as they are.
        state_of: of a file, when it was last changed, and its size.
        said: level and message of what was said when they were read.

    Raises:
        NotStorableError: files cannot give them back as they are.
        OSError, pyarrow.ArrowException: the files cannot be written.
    """
    numbers: dict[Any, int] = {}
    album: list[Picture] = []
    about: dict[str, Any] = {"same": {}, "documents": {}, "numbers": {}, "fingerprints": {}, "said": list(said)}

    def number(picture: Picture | None) -> int:
        if picture is None:
            return NOTHING
        key = identity(picture), getattr(picture, "name", "")
        if key not in numbers:
            numbers[key] = len(album)
            album.append(picture)
        return numbers[key]

    for split, given in samples.items():
        shown = {
            name: pyarrow.array([number(getattr(sample, name)) for sample in given], pyarrow.int32()) for name in SHOWN
        }
        columns = {name: [getattr(sample, name) for sample in given] for name in PLAIN}
        columns[MORE] = [tuple(map(number, own)) for own in columns[MORE]]
        write_columns(folder, split, columns, shown, about)
        about["fingerprints"][split] = fingerprint(given)
    _write_pictures(folder, [*album, *others], state_of, about)
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    write_manifest(folder)


def _write_pictures(folder: Path, album: Sequence[Picture], state_of: Any, about: dict[str, Any]) -> None:
    if strange := next((picture for picture in album if type(picture) not in KINDS), None):
        raise NotStorableError(f"images are {type(strange).__name__}s")
    kinds = [KINDS.index(type(picture)) for picture in album]
    pairs = [*zip(kinds, cast(list[Any], album), strict=True)]
    headers = [getattr(picture, "header", None) or NO_HEADER for picture in album]
    states = [(kind in (FILE, FEATURES) and state_of(picture.path)) or (NOTHING, NOTHING) for kind, picture in pairs]
    texts = {
        "path": [picture.identity if kind == NONE else getattr(picture, "path", "") for kind, picture in pairs],
        "name": [picture.name if kind == BYTES else "" for kind, picture in pairs],
        "key": [picture.key if kind == BYTES else "" for kind, picture in pairs],
        "mode": [header.mode for header in headers],
        "format": [header.format for header in headers],
    }
    numbers = {
        "kind": pyarrow.array(kinds, pyarrow.int8()),
        "changed": pyarrow.array([state[0] for state in states], pyarrow.int64()),
        "size": pyarrow.array([state[1] for state in states], pyarrow.int64()),
        "data": pyarrow.array([getattr(picture, "data", b"") for picture in album], pyarrow.large_binary()),
    }
    for name in set(Header._fields) - texts.keys():
        numbers[name] = pyarrow.array([getattr(header, name) for header in headers], pyarrow.int64())
    write_columns(folder, PICTURES, texts, numbers, about)
