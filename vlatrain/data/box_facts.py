"""What the boxes of a data set are like, and what is likely wrong with them: found without a model. Facts are JSON values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any

from vlatrain.data.boxes import Box
from vlatrain.data.images import identity
from vlatrain.data.sample import Sample

Place = Callable[[Sample], str]
Expressions = Mapping[str, Mapping[tuple[str, str], Sequence[Sample]]]
"""By split the rows with boxes, by their image's content and their expression."""

LISTED = 20  # expressions whose boxes are counted one by one, where each has several samples
THIN = 0.01  # of the image's side: what is thinner is hardly seen
WHOLE, OFTEN = 0.95, 0.1  # share of the image from which a box is all of it; share of boxes from which that is said
SAME, OTHER = 0.95, 0.5  # IoU from which two boxes are one, and below which they are of two things


def box_facts(samples: Sequence[Sample]) -> dict[str, Any]:
    """The facts of a split's boxes under `boxes`; nothing where there are none."""
    boxes = [box for sample in samples for box in sample.boxes]
    if not boxes:
        return {}
    areas: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.question] = counts.get(sample.question, 0) + 1
        areas.setdefault(sample.question, []).extend(100 * area(box) for box in sample.boxes)
    facts = {
        "number": len(boxes),
        "each": _spread([len(sample.boxes) for sample in samples]),
        "without": sum(not sample.boxes for sample in samples),
        "area": _spread([round(100 * area(box), 3) for box in boxes]),
        "sides": _spread([round(100 * side, 3) for box in boxes for side in sides(box)]),
        "expressions": len(counts),
    }
    if len(counts) <= LISTED and len(samples) >= 2 * len(counts):
        often = sorted(counts, key=lambda name: -len(areas[name]))
        facts["classes"] = {
            name: {
                "samples": counts[name],
                "boxes": len(areas[name]),
                "area": round(median(areas[name]), 3) if areas[name] else None,
            }
            for name in often
        }
    return {"boxes": facts}


def box_findings(
    samples: Mapping[str, Sequence[Sample]], content: Mapping[str, str], place: Place
) -> Iterator[tuple[str, str]]:
    """What is likely wrong with boxes: its kind, and the message.

    Args:
        samples: the samples by split.
        content: by the identity of a picture what tells its content from others'.
        place: where a sample is, for messages.
    """
    rows: dict[str, dict[tuple[str, str], list[Sample]]] = {}
    for split, given in samples.items():
        own = rows.setdefault(split, {})
        for sample in given:
            if sample.boxes:
                own.setdefault((content[identity(sample.image)], _plain(sample.question)), []).append(sample)
    yield from _contradictions(rows, place)
    yield from _shared(rows, place)
    for split, given in samples.items():
        boxed = [sample for sample in given if sample.boxes]
        yield from _shapes(split, boxed, place)
        if twice := [one for one in boxed if any(overlap(a, b) >= SAME for a, b in combinations(one.boxes, 2))]:
            yield (
                "repeated boxes",
                f"data.{split}: {len(twice):,} of {len(boxed):,} rows have a box twice (the first: {place(twice[0])}): where one "
                "is found, the other counts as missed",
            )


def _contradictions(expressions: Expressions, place: Place) -> Iterator[tuple[str, str]]:
    """Rows of one image and expression in which there is no box that another has."""
    every: dict[tuple[str, str], list[Sample]] = {}
    for own in expressions.values():
        for key, found in own.items():
            every.setdefault(key, []).extend(found)
    pairs = [pair for found in every.values() if (pair := _apart(found))]
    if pairs:
        one, two = pairs[0]
        count = f"{len(pairs):,} expression{'s' if len(pairs) > 1 else ''} of one image {'have' if len(pairs) > 1 else 'has'}"
        yield (
            "contradictory boxes",
            f"{count} other boxes in different rows (the first: '{one.question}' in {place(one)} and {place(two)}): say more in "
            "the expression, or put all boxes into one row's `boxes` and set task.several=true",
        )


def _apart(alike: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    """The first row with another one in which none of its boxes is."""
    first = alike[0]
    others = (one for one in alike[1:] if max(overlap(a, b) for a in first.boxes for b in one.boxes) < OTHER)
    other = next(others, None)
    return (first, other) if other else None


def _shared(expressions: Expressions, place: Place) -> Iterator[tuple[str, str]]:
    """Rows whose image and expression are in two splits."""
    for one, two in combinations(expressions, 2):
        if both := [key for key in expressions[two] if key in expressions[one]]:
            count, pair = (
                f"{len(both):,} of its {len(expressions[two]):,}",
                [expressions[n][both[0]][0] for n in (two, one)],
            )
            yield (
                "shared expressions",
                f"data.{two}: {count} expressions are in data.{one}, too, of the same image (the first: {place(pair[0])} = "
                f"{place(pair[1])}): what is scored there was learned; leave them out of one",
            )


def _shapes(split: str, boxed: Sequence[Sample], place: Place) -> Iterator[tuple[str, str]]:
    """Boxes too thin to be seen, and many that are the whole image."""
    total = sum(len(sample.boxes) for sample in boxed)
    thin = [sample for sample in boxed for box in sample.boxes if min(sides(box)) < THIN]
    whole = [sample for sample in boxed for box in sample.boxes if area(box) >= WHOLE]
    if thin:
        yield (
            "thin boxes",
            f"data.{split}: {len(thin):,} of {total:,} boxes have a side of less than {100 * THIN:g} % of the image's (the first: "
            f"{place(thin[0])}): no cell of a model's grid is so small; cut the images into tiles, or leave these out",
        )
    if len(whole) >= max(2, OFTEN * total):
        yield (
            "boxes of whole images",
            f"data.{split}: {len(whole):,} of {total:,} boxes are nearly all of their image (the first: {place(whole[0])}): is "
            "data.boxes what they are written in?",
        )


def area(box: Box) -> float:
    """A box's share of the image."""
    return (box[2] - box[0]) * (box[3] - box[1])


def sides(box: Box) -> tuple[float, float]:
    """Its width and height, as shares of the image's."""
    return box[2] - box[0], box[3] - box[1]


def overlap(one: Box, two: Box) -> float:
    """Intersection over union of two boxes that have an area."""
    across = min(one[2], two[2]) - max(one[0], two[0])
    down = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(0.0, across) * max(0.0, down)
    return shared / (area(one) + area(two) - shared)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _spread(values: Iterable[float]) -> dict[str, float]:
    known = list(values)
    return {"min": min(known), "median": median(known), "max": max(known)}
