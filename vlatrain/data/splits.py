"""Splits: those that a column of the data tells apart, and seeded ones. The latter, caps and few shots depend on the seed and the
order of the data, nothing else."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vlatrain.config.data import SPLIT_VALUES, ColumnsConfig, SplitConfig
from vlatrain.data.cells import clipped, listed
from vlatrain.data.checks import Problems
from vlatrain.data.images import identity
from vlatrain.data.lazy import column, select
from vlatrain.data.sample import Sample
from vlatrain.data.tables import Row, Table

log = logging.getLogger("vlatrain")

Item = TypeVar("Item", bound=Hashable)


def hold_out(
    samples: Sequence[Sample], count: int, seed: int, by_class: bool = False
) -> tuple[list[Sample], list[Sample]]:
    """Split off about `count` samples, whole images at a time.

    Samples that share an image stay together, else the model would be scored on images it was trained on. Images are
    drawn at random until `count` samples are reached or passed; at least one image stays on each side.

    By class, each class has about the same share split off, and keeps an image (one of several labels is of its first).

    Args:
        samples: the samples to split.
        count: samples to split off.
        seed: seed of the draw.
        by_class: whether it is drawn class by class.

    Returns:
        The rest and the split-off samples, each in the order given. If all samples share one image nothing is split
        off.
    """
    groups: dict[str, int] = {}  # image -> number of its samples
    keys = _linked(samples)
    for key in keys:
        groups[key] = groups.get(key, 0) + 1
    labels: dict[str, str] = {}
    for key, sample in zip(keys, samples, strict=True) if by_class else ():
        labels.setdefault(key, sample.label)
    order = _shuffled(list(groups), f"hold out {seed}", labels)
    stay = Counter(labels.get(key, "") for key in order)  # images of each class that are left
    chosen: set[str] = set()
    total = 0
    for key in order:
        if total >= max(1, count):
            break
        if stay[label := labels.get(key, "")] > 1:  # the last stays, whatever the count
            stay[label] -= 1
            chosen.add(key)
            total += groups[key]
    rest = [sample for key, sample in zip(keys, samples, strict=True) if key not in chosen]
    held = [sample for key, sample in zip(keys, samples, strict=True) if key in chosen]
    return rest, held


def _linked(samples: Sequence[Sample]) -> list[str]:
    """For each sample a name that it has in common with those that share an image with it, directly or through others."""
    above: dict[str, str] = {}

    def top(key: str) -> str:
        while (up := above.get(key, key)) != key:
            above[key] = key = above.get(up, up)  # the way becomes shorter each time
        return key

    for sample in samples:
        for other in sample.more:
            one, two = top(identity(sample.image)), top(identity(other))
            if one != two:
                above[two] = one
    return [top(identity(sample.image)) for sample in samples]


def cap(samples: Sequence[Sample], size: int | None, seed: int, by_class: bool = False) -> list[Sample]:
    """At most `size` samples, drawn at random and kept in the order given; null keeps all.

    A smaller cap draws a subset of what a larger one draws, so that runs over growing `train_size` nest. Not the first
    `size`: files are often sorted, by class or by image. By class, each class keeps about its share.
    """
    if size is None or size >= len(samples):
        return list(samples)
    labels = {place: sample.label for place, sample in enumerate(samples)} if by_class else {}
    order = _shuffled(list(range(len(samples))), f"cap {seed}", labels)
    return [samples[index] for index in sorted(order[:size])]


SPLIT = "split"  # what a column that says the split is called


@dataclass
class SplitRows:
    """The rows of a table by split, as its split column has them.

    Attributes:
        column: the column, for messages.
        rows: the rows of each split.
        all: all rows.
        values: the values of the column, each with its number of rows.
    """

    column: str
    rows: dict[str, list[Row]]
    all: list[Row]
    values: Counter[str]

    def of(self, split: str, option: str, problems: Problems) -> list[Row]:
        """The rows of a split of a file that was named for it; all, which is said, if the file is of one other split alone.

        Args:
            split: the split.
            option: the option that named the file, for messages.
            problems: where to report that there are no such rows.
        """
        if self.rows[split]:
            return self.rows[split]
        said = ", ".join(f"{clipped(value)} ({count:,})" for value, count in self.values.most_common(5))
        if len(self.values) == 1:
            log.warning("%s: column '%s' says %s for all rows: all are taken", option, self.column, said)
            return self.all
        problems.add(
            "splits",
            f"{option}: no row is of {split} by its column '{self.column}', which says {said}: set data.split.{split}=[VALUE], or "
            "data.columns.split= to take all rows",
        )
        return []


def rows_by_split(table: Table, columns: ColumnsConfig, wanted: SplitConfig, problems: Problems) -> SplitRows | None:
    """The rows of a table by split; what its split column says, and what is left out, is said.

    Args:
        table: the table.
        columns: the user's column map, which may name the split column.
        wanted: which values make which split.
        problems: where to report a column that is not there, or that says nothing of splits.

    Returns:
        The rows; None if no column tells splits apart.
    """
    column = columns.split if columns.split is not None else SPLIT
    asked = columns.split is not None or any(getattr(wanted, split) is not None for split in SPLIT_VALUES)
    if not column:
        return None
    if column not in table.columns:
        if asked:
            problems.add(
                "splits",
                f"{table.name}: no column '{column}', which would say the split; the columns are {listed(table.columns)}; "
                "data.columns.split=COLUMN names one",
            )
        return None
    names = {
        value.lower(): split
        for split, usual in SPLIT_VALUES.items()
        for value in (usual if getattr(wanted, split) is None else getattr(wanted, split))
    }
    rows: dict[str, list[Row]] = {split: [] for split in SPLIT_VALUES}
    values: Counter[str] = Counter()
    for row in table.rows:
        value = str(row[1].get(column)).strip()
        values[value] += 1
        if split := names.get(value.lower()):
            rows[split].append(row)
    if not any(rows.values()):
        if asked:
            said = ", ".join(clipped(value) for value, _ in values.most_common(5))
            problems.add(
                "splits",
                f"{table.name}: column '{column}' says {said}, and none of {', '.join(names)}: set data.split.train=[VALUE]",
            )
        return None
    if len(values) > 1:
        log.info("%s: split by its column '%s': %s", table.name, column, _counted(rows))
    if unknown := [f"{clipped(value)} ({count:,})" for value, count in values.items() if value.lower() not in names]:
        log.warning(
            "%s: rows of no split are left out: column '%s' says %s; data.split.train=[VALUE] takes them",
            table.name,
            column,
            ", ".join(unknown[:5]),
        )
    return SplitRows(column, rows, table.rows, values)


def _counted(by_split: Mapping[str, Sequence[Row]]) -> str:
    return ", ".join(f"{len(of_split):,} {split}" for split, of_split in by_split.items() if of_split)


def few_shots(samples: Sequence[Sample], shots: int, seed: str) -> Sequence[Sample]:
    """At most `shots` samples of each class, drawn at random and kept in the order given.

    Fewer shots are among more, and those of a class do not depend on which other classes there are.

    Args:
        samples: samples with labels.
        shots: samples of each class.
        seed: seed of the draw.
    """
    by_label: dict[str, list[int]] = {}
    for place, label in enumerate(column(samples, "label")):
        by_label.setdefault(label, []).append(place)
    chosen: list[int] = []
    for label, places in by_label.items():
        random.Random(f"shots {seed} {label}").shuffle(places)
        chosen += places[:shots]
    return select(samples, sorted(chosen))


def _shuffled(items: list[Item], seed: str, labels: Mapping[Item, str]) -> list[Item]:
    """The items in random order: where they have labels, so that each beginning of it has about the share of each label that all
    have."""
    rng = random.Random(seed)
    rng.shuffle(items)
    if not labels:
        return items
    counts, numbers = Counter(labels[item] for item in items), Counter[str]()
    starts = {label: rng.random() for label in sorted(counts)}
    places: dict[Item, float] = {}
    for item in items:  # the n-th of a class stands where so large a share of the class has gone before
        label = labels[item]
        places[item] = (numbers[label] + starts[label]) / counts[label]
        numbers[label] += 1
    return sorted(items, key=places.__getitem__)
