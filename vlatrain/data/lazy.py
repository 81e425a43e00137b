"""Samples that are looked up and not held: a sequence that builds a sample whenever it is asked for, and what is done with samples
field by field, image by image or by their places, so that neither a million objects are made for it, nor a list of them.

Everything here takes lists too, and does the same with them.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, overload

import numpy as np

from vlatrain.config.memo import keep_result, key_of, load_result
from vlatrain.data.images import identity
from vlatrain.data.sample import Picture, Sample, fingerprint


class Lazy(Sequence[Sample]):
    """Samples that are built on access. A slice of them is as lazy."""

    @abstractmethod
    def among(self, places: np.ndarray) -> Iterator[Sample]:
        """The samples at some places, from 0 on."""

    @abstractmethod
    def column_among(self, field: str, places: np.ndarray) -> Iterator[Any]:
        """What the samples at some places have in a field."""

    @abstractmethod
    def pictures_among(self, places: np.ndarray) -> Iterator[Picture]:
        """Each distinct picture of the samples at some places, in the order of the first that have it."""

    @property
    @abstractmethod
    def stamp(self) -> str:
        """A hash of which samples these are, and of the state of their images; nothing is read for it."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What `vlatrain.data.sample.fingerprint` says of the same samples in a list."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return select(self, range(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return next(self.among(np.array([index % len(self)])))

    def __iter__(self) -> Iterator[Sample]:
        return self.among(np.arange(len(self)))


class Selection(Lazy):
    """Samples of several sequences, one after the other, or those at some places of them.

    Args:
        sources: the sequences, each with the subtask of a joint run that its samples are of; empty: they are as they are.
        places: places in all of them together; None: all.
    """

    def __init__(self, sources: Sequence[tuple[str, Sequence[Sample]]], places: np.ndarray | None = None) -> None:
        self.sources = list(sources)
        self.starts = np.cumsum([0, *(len(source) for _, source in self.sources)]).tolist()
        self.places = places

    def __len__(self) -> int:
        return self.starts[-1] if self.places is None else len(self.places)

    def _among(self, places: np.ndarray) -> Iterator[tuple[str, Sequence[Sample], np.ndarray]]:
        """Places as runs of one source each: its subtask, the source, and the places in it."""
        if self.places is not None:
            places = self.places[places]
        numbers = np.searchsorted(self.starts, places, side="right") - 1
        ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(places)] if len(places) else []
        for start, end in pairwise([0, *ends]):
            number = int(numbers[start])
            yield *self.sources[number], places[start:end] - self.starts[number]

    def among(self, places: np.ndarray) -> Iterator[Sample]:
        """The samples at some places, from 0 on."""
        for subtask, source, own in self._among(places):
            found = source.among(own) if isinstance(source, Lazy) else map(source.__getitem__, own.tolist())
            for one in found:
                yield replace(one, id=f"{subtask}/{one.id}", subtask=subtask) if subtask else one

    def column_among(self, field: str, places: np.ndarray) -> Iterator[Any]:
        """What the samples at some places have in a field."""
        for subtask, source, own in self._among(places):
            if subtask and field == "subtask":
                yield from [subtask] * len(own)
                continue
            lazy = isinstance(source, Lazy)
            values = source.column_among(field, own) if lazy else column(select(source, own.tolist()), field)  # type: ignore
            yield from (f"{subtask}/{value}" for value in values) if subtask and field == "id" else values

    def pictures_among(self, places: np.ndarray) -> Iterator[Picture]:
        """Each distinct picture of the samples at some places; those of each source by themselves."""
        found = places if self.places is None else self.places[places]
        for number, (_, source) in enumerate(self.sources):
            start, end = self.starts[number : number + 2]
            own = found[(found >= start) & (found < end)] - start
            yield from (
                source.pictures_among(own) if isinstance(source, Lazy) else pictures(select(source, own.tolist()))
            )

    @property
    def stamp(self) -> str:
        """A hash of the sources, and of the places in them."""
        sources = [
            (subtask, source.stamp if isinstance(source, Lazy) else fingerprint(source))
            for subtask, source in self.sources
        ]
        places = "" if self.places is None else hashlib.blake2b(self.places.tobytes(), digest_size=16).hexdigest()
        return key_of(sources, places)

    @property
    def fingerprint(self) -> str:
        """The same, from disk where it was found before: it takes some seconds of a million samples."""
        key = key_of("fingerprint", self.stamp)
        known = load_result(key)
        if known is None:
            known = fingerprint(iter(self))
            keep_result(key, known)
        return str(known)


def select(samples: Sequence[Sample], places: Sequence[int] | np.ndarray) -> Sequence[Sample]:
    """The samples at some places, in the order of these."""
    if not isinstance(samples, Lazy):
        return [samples[place] for place in places]
    chosen = np.asarray(places, dtype=np.int64)
    if not isinstance(samples, Selection):
        return Selection([("", samples)], chosen)
    return Selection(samples.sources, chosen if samples.places is None else samples.places[chosen])


def joined(several: Iterable[Sequence[Sample]]) -> Sequence[Sample]:
    """The samples of one sequence after those of the other."""
    given = list(several)
    if not any(isinstance(samples, Lazy) for samples in given):
        return [sample for samples in given for sample in samples]
    sources: list[tuple[str, Sequence[Sample]]] = []
    places, start = [], 0
    for samples in given:
        one = samples if isinstance(samples, Selection) else Selection([("", samples)])
        sources += one.sources
        places.append(start + (np.arange(len(one)) if one.places is None else one.places))
        start += one.starts[-1]
    return Selection(sources, np.concatenate(places))


def named(samples: Sequence[Sample], subtask: str) -> Sequence[Sample]:
    """Samples as those of a subtask, which their ids then begin with."""
    if isinstance(samples, Lazy):
        return Selection([(subtask, samples)])
    return [replace(sample, id=f"{subtask}/{sample.id}", subtask=subtask) for sample in samples]


def of_subtask(samples: Sequence[Sample], subtask: str) -> Sequence[Sample]:
    """The samples of a subtask; under an empty name, all of a run that is not joint."""
    if not subtask:
        return samples
    return select(samples, [place for place, own in enumerate(column(samples, "subtask")) if own == subtask])


def by_subtask(samples: Mapping[str, Sequence[Sample]], subtask: str) -> dict[str, Sequence[Sample]]:
    """By split, the samples of a subtask."""
    return {split: of_subtask(own, subtask) for split, own in samples.items()}


def column(samples: Sequence[Sample], field: str) -> Iterator[Any]:
    """What each sample has in a field."""
    if isinstance(samples, Lazy):
        return samples.column_among(field, np.arange(len(samples)))
    return (getattr(sample, field) for sample in samples)


def pictures(samples: Sequence[Sample]) -> Iterator[Picture]:
    """Each distinct picture, in the order of the first samples that have it."""
    if isinstance(samples, Lazy):
        return samples.pictures_among(np.arange(len(samples)))
    found: dict[str, Picture] = {}
    for one in (one for sample in samples for one in sample.pictures):
        found.setdefault(identity(one), one)
    return iter(found.values())


def distinct(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples, those that are repeated once."""
    if isinstance(samples, Selection) and samples.places is not None:
        first = np.unique(samples.places, return_index=True)[1]
        return samples if len(first) == len(samples) else select(samples, np.sort(first))
    return samples if isinstance(samples, Lazy) else list({sample.id: sample for sample in samples}.values())


def most_images(samples: Sequence[Sample]) -> int:
    """The most pictures that a sample has."""
    return 1 + max(map(len, column(samples, "more")), default=0)


class Images(Sequence[Picture]):
    """The picture of each sample, as lazily as the samples are had.

    Args:
        samples: the samples.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | Sequence[Picture]:
        return Images(self.samples[index]) if isinstance(index, slice) else self.samples[index].image

    def __iter__(self) -> Iterator[Picture]:
        return column(self.samples, "image")
