"""Everything wrong with a data set, found before any model loads and reported at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from vlatrain.config.errors import UserError
from vlatrain.config.keys import did_you_mean
from vlatrain.config.spec import SmallestSpec
from vlatrain.config.task import TaskConfig
from vlatrain.data.cells import clipped, listed
from vlatrain.data.features import FeaturePicture
from vlatrain.data.images import (
    BAD_IMAGE,
    NO_SUCH_IMAGE,
    Header,
    decoding,
    explain,
    formats,
    identity,
    opened,
    to_rgb,
)
from vlatrain.data.lazy import column

if TYPE_CHECKING:
    from vlatrain.data.sample import Picture, Sample

LIMIT = 20  # problems shown in full
PATH_SHOWN = 240  # characters of an image's path in a message
PATIENCE = 2.0  # seconds of checking before a progress bar appears
SMALL = 256 * 1024  # bytes up to which a PNG's checksums are verified
# Whether a file looks whole, from its first and last 12 bytes and its size. A sound JPEG, PNG or GIF may have more
# after its end (a motion photo has a video there), so a file that does not look whole is decoded to be sure.
WHOLE: dict[str | None, Callable[[bytes, bytes, int], bool]] = {
    "JPEG": lambda head, tail, size: tail.endswith(b"\xff\xd9"),
    "MPO": lambda head, tail, size: tail.endswith(b"\xff\xd9"),
    "PNG": lambda head, tail, size: tail.endswith(b"IEND\xaeB`\x82"),
    "GIF": lambda head, tail, size: tail.endswith(b";"),
    "WEBP": lambda head, tail, size: int.from_bytes(head[4:8], "little") + 8 <= size,
}


class Problems:
    """Collects problems by kind, bounded in memory however many there are.

    The first `LIMIT` are listed in full; of more, some of each kind, and the rest are counted.
    """

    def __init__(self) -> None:
        self._shown: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._first: list[str] = []

    def add(self, kind: str, message: str) -> None:
        """Add one problem. `kind` names problems of the sort, in the plural, for counting."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if len(self._first) < LIMIT:
            self._first.append(message)
        shown = self._shown.setdefault(kind, [])
        if len(shown) < LIMIT:
            shown.append(message)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def messages(self) -> list[str]:
        """The report, one line each."""
        if len(self) <= LIMIT:
            return self._first
        lines = []
        for (kind, shown), quota in zip(self._shown.items(), self._quotas(), strict=True):
            lines += shown[:quota]
            if rest := self._counts[kind] - quota:
                lines.append(f"... and {rest:,} more: {kind}")
        return lines

    def _quotas(self) -> list[int]:
        """How many of each kind are shown: `LIMIT` in all, dealt out one at a time so that rare kinds are whole."""
        quotas = [1] * len(self._shown)
        while sum(quotas) < LIMIT:
            for index, shown in enumerate(self._shown.values()):
                if sum(quotas) < LIMIT and quotas[index] < len(shown):
                    quotas[index] += 1
        return quotas

    def raise_if_any(self) -> None:
        """Raise `UserError` with all of them, if there are any."""
        if self._counts:
            raise UserError(self.messages())


def check_sizes(samples: Mapping[str, Sequence[Sample]], task: TaskConfig, batch_size: int, problems: Problems) -> None:
    """Report empty splits, and splits too small for the task or for one batch.

    Args:
        samples: the splits; leave out those that are small because of other problems.
        task: the task.
        batch_size: smallest allowed number of training samples.
        problems: where to report.
    """
    for split, found in samples.items():
        count = len(found)
        small = next((bound for bound in task.spec.smallest if split in bound.splits), SmallestSpec())
        if count == 0:
            problems.add("empty splits", f"data.{split}: no samples")
        elif count < small.samples:
            problems.add(
                "too small splits",
                f"data.{split}: {count} sample, and {task.name} needs {small.samples}: {small.reason}",
            )
        elif split == "train" and count < batch_size:
            problems.add(
                "too small splits",
                f"data.train: {_samples(count)}, fewer than one batch of {batch_size}: "
                f"set trainer.batch_size={count} or less",
            )


def check_labels(
    samples: Mapping[str, Sequence[Sample]], classes: Sequence[str], metric: str, problems: Problems
) -> None:
    """Report what keeps samples from being classified: labels that are none of the classes, and too few classes.

    Args:
        samples: the splits, sound ones.
        classes: the classes; empty: those of `train`.
        metric: what chooses the best checkpoint.
        problems: where to report.
    """
    known = set(classes or column(samples.get("train", ()), "label"))
    if len(known) < 2:
        problems.add("classes", f"data.train: a single class ({listed(sorted(known))}); a choice needs two or more")
        return
    for found in samples.values():
        sources: dict[str, list[str]] = {}
        for label, source in zip(column(found, "label"), column(found, "source"), strict=True):
            if label not in known:
                sources.setdefault(label, []).append(source)
        for label in sources:
            more = f", and {len(sources[label]) - 1:,} more of it" if len(sources[label]) > 1 else ""
            why = f"none of the {len(known):,} in task.classes{did_you_mean(label, sorted(known))}"
            if not classes:
                why = "no training sample is; task.classes=[...] can name what is not trained on"
            problems.add("unknown classes", f"{sources[label][0]}: of class '{clipped(label)}'{more}: {why}")
    absent = sorted(known - set(column(samples.get("eval", ()), "label")))
    if metric == "auroc" and "eval" in samples and absent:
        named = listed(absent, 5)
        problems.add("classes", f"task.metric=auroc: takes samples of every class, and data.eval has none of {named}")


@dataclass(frozen=True)
class Fault:
    """A picture that is missing or cannot be read.

    Attributes:
        picture: the picture.
        source: where it is named first (`train.jsonl:12`).
        what: what is wrong with it.
    """

    picture: Picture
    source: str
    what: str

    @property
    def described(self) -> str:
        """What is wrong, and the picture's name where its place does not say it."""
        name = getattr(self.picture, "name", "image")
        return self.what + (f": {clipped(name, PATH_SHOWN)}" if name != self.source else "")


def check_pictures(pictures: Iterable[tuple[Picture, str]], problems: Problems, root: str = "") -> None:
    """Report every picture that is missing or cannot be read.

    Args:
        pictures: pictures, each with where it is named.
        problems: where to report.
        root: the image root, for the message if no image at all is found.
    """
    report_faults(*find_faults(pictures), problems, root)


def find_faults(pictures: Iterable[tuple[Picture, str]]) -> tuple[list[Fault], int]:
    """Every picture that is missing or cannot be read, and how many different ones there are.

    Each distinct picture is looked at once: it must exist, its header must decode, and its end must be there (a file
    whose end looks wrong is decoded whole). A progress bar appears when this takes long.
    """
    distinct: dict[str, tuple[Picture, str]] = {}
    for picture, source in pictures:
        distinct.setdefault(identity(picture), (picture, source))
    looked = zip(distinct.values(), _faults(list(distinct.values())), strict=True)
    return [Fault(picture, source, what) for (picture, source), what in looked if what], len(distinct)


def report_faults(faults: Sequence[Fault], number: int, problems: Problems, root: str = "") -> None:
    """Report pictures that are missing or cannot be read. Where all of `number` are missing, the root is: that is said once."""
    missing = [fault for fault in faults if fault.what == NO_SUCH_IMAGE]
    if 1 < number == len(missing):
        below = f" below {root}" if root else ""
        first = missing[0]
        problems.add(
            "image roots",
            f"none of the {number:,} images was found{below} (the first is {first.source}: "
            f"{clipped(getattr(first.picture, 'name', 'image'), PATH_SHOWN)}): set data.root to the folder their paths start from",
        )
        return
    for fault in faults:
        kind = "missing images" if fault.what == NO_SUCH_IMAGE else "unreadable images"
        problems.add(kind, f"{fault.source}: {fault.described}")


def fault_of(picture: Picture) -> str:
    """What is wrong with a picture in a few words, or nothing. Reads the header and the end, rarely all of it."""
    if isinstance(picture, FeaturePicture):
        return picture.fault()
    opener: Callable[..., Any] | None = getattr(picture, "open", None)
    if opener is None:  # generated on the fly: nothing stored that could be broken
        return ""
    try:
        with opener() as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            with opened(file) as image:
                # headers are read once, see `header_of`
                picture.header = Header(*image.size, image.mode, str(image.format), size)  # type: ignore[attr-defined]
                if image.format not in WHOLE:
                    with decoding(image):
                        to_rgb(image)
                    return ""
                file.seek(0)
                head = file.read(12)
                file.seek(max(0, size - 12))
                whole = WHOLE[image.format](head, file.read(), size)
                file.seek(0)
                if whole and not (image.format == "PNG" and size <= SMALL):
                    return ""
            with opened(file) as image, decoding(image):
                image.verify() if whole else to_rgb(image)
    except BAD_IMAGE as error:
        return explain(error)
    return ""


def _faults(pictures: list[tuple[Picture, str]]) -> Iterator[str]:
    """`fault_of` each, in order, in threads."""
    if not pictures:
        return
    formats()  # left to the threads, one that comes second finds the formats half registered and knows no image
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool, _progress(len(pictures)) as advance:
        rest = iter(pictures)
        # Bounded rounds: one future for each of a million pictures would take gigabytes.
        while chunk := list(islice(rest, 4096)):
            for fault in pool.map(fault_of, (picture for picture, _ in chunk)):
                advance()
                yield fault


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A function to call after each of `total` pictures; shows a bar on standard error once that has taken long."""
    start = time.monotonic()
    done = 0
    bar = None

    def advance() -> None:
        nonlocal done, bar
        done += 1
        if bar is None and done % 64 == 0 and time.monotonic() - start > PATIENCE:
            from rich.console import Console
            from rich.progress import Progress

            console = Console(stderr=True)
            bar = Progress(console=console, transient=True, disable=not console.is_terminal)
            bar.start()
            bar.add_task("checking images", total=total, completed=done)
            if not console.is_terminal:
                console.print(f"checking {total:,} images", highlight=False)
        elif bar is not None and done % 64 == 0:
            bar.update(bar.task_ids[0], completed=done)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _samples(count: int) -> str:
    return f"{count:,} sample" if count == 1 else f"{count:,} samples"
