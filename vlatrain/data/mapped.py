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

from vlatrain.data.arrow_columns import NotStorableError, read_columns, write_columns
from vlatrain.data.features import FeaturePicture
from vlatrain.data.images import BytesPicture, FilePicture, Header, NoPicture, identity
from vlatrain.data.lazy import Lazy
from vlatrain.data.sample import Picture, Sample, fingerprint

ABOUT, PICTURES = "about.json", "pictures"
AT_ONCE = 4096  # samples that are built at a time where all are
KINDS = (FilePicture, FeaturePicture, BytesPicture, NoPicture)
FILE, FEATURES, BYTES, NONE = range(len(KINDS))
SHOWN = ("image", "mask")  # fields that hold pictures: their columns are numbers of these
NOTHING = -1  # number of the mask of a sample without one; number in a header that there is not
PLAIN = [field.name for field in fields(Sample) if field.name not in SHOWN]
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

    def __reduce__(self) -> Any:
        return _album, (self.folder,)

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: int) -> Picture:
        values = {name: column.at(place) for name, column in self.columns.items() if name != "data"}
        picture: FilePicture | BytesPicture
        if values["kind"] == NONE:
            return NoPicture(values["path"])
        if values["kind"] == BYTES:
            picture = BytesPicture(self.columns["data"].at(place), values["name"])
            picture.know(values["key"])
        else:
            picture = (FeaturePicture if values["kind"] == FEATURES else FilePicture)(values["path"])
            picture.know("" if self.keys is None else self.keys[place].decode(), partial(self._remember, place))
        if values["width"] != NOTHING:
            picture.header = Header(**{name: values[name] for name in Header._fields})
        return picture

    def _remember(self, place: int, key: str) -> None:
        if self.keys is None:
            self.keys = np.zeros(self.number, "S32")
        self.keys[place] = key.encode()

    def files(self) -> Iterator[tuple[str, list[int]]]:
        """Path, time of the last change and size of each picture in a file, as they were when the folder was written."""
        names = ("kind", "path", "changed", "size")
        for start in range(0, self.number, AT_ONCE):
            some = [self.columns[name].between(start, min(start + AT_ONCE, self.number)) for name in names]
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

    def at(self, place: int) -> Sample:
        """The sample at a place from 0 on."""
        return Sample(**{name: self.value(place, name) for name in (*SHOWN, *PLAIN)})

    def value(self, place: int, field: str) -> Any:
        """What one sample has in a field."""
        value = self.columns[field].at(place)
        if field in SHOWN:
            return None if value == NOTHING else self.album[value]
        return value

    def __iter__(self) -> Iterator[Sample]:
        last, picture = -1, None
        for start in range(0, self.number, AT_ONCE):
            end = min(start + AT_ONCE, self.number)
            some = [self.columns[name].between(start, end) for name in (*SHOWN, *PLAIN)]
            for number, mask, *own in zip(*some, strict=True):
                if number != last or picture is None:
                    last, picture = number, self.album[number]
                drawn = None if mask == NOTHING else self.album[mask]
                yield Sample(image=picture, mask=drawn, **dict(zip(PLAIN, own, strict=True)))

    def column(self, field: str) -> Iterator[Any]:
        """What each sample has in a field."""
        if field in SHOWN:
            yield from (self.value(place, field) for place in range(self.number))
            return
        for start in range(0, self.number, AT_ONCE):
            yield from self.columns[field].between(start, min(start + AT_ONCE, self.number))

    def pictures(self) -> Iterator[Picture]:
        """Each distinct picture, in the order of the first samples that have it."""
        return self.pictures_at(np.arange(self.number))

    def pictures_at(self, places: np.ndarray) -> Iterator[Picture]:
        """The distinct pictures of the samples at some places."""
        numbers = np.asarray(self.columns["image"].between(0, self.number), dtype=np.int64)[places]
        first = np.sort(np.unique(numbers, return_index=True)[1])
        return (self.album[number] for number in numbers[first].tolist())


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
    for split, given in samples.items():
        shown: dict[str, Any] = {}
        for name in SHOWN:
            places = []
            for sample in given:
                picture: Picture | None = getattr(sample, name)
                if picture is None:
                    places.append(NOTHING)
                    continue
                key = identity(picture), getattr(picture, "name", "")
                if key not in numbers:
                    numbers[key] = len(album)
                    album.append(picture)
                places.append(numbers[key])
            shown[name] = pyarrow.array(places, pyarrow.int32())
        columns = {name: [getattr(sample, name) for sample in given] for name in PLAIN}
        write_columns(folder, split, columns, shown, about)
        about["fingerprints"][split] = fingerprint(given)
    _write_pictures(folder, [*album, *others], state_of, about)
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


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
