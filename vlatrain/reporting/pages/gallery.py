"""The predictions of a run for its page: which are shown, and each as plain values, whatever its task.

Two passes over `predictions.jsonl`, so that a million of them need no memory: the first counts and chooses, the second reads
what was chosen.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vlatrain.reporting.pages.reading import lines
from vlatrain.reporting.pages.thumbnails import Pictures, Thumbnails

MOST = 1500  # records of a gallery
LONGEST = 700  # characters of a text
FULL, BOX = 99.99, 50.0  # a score from which on a prediction is right; that of a box is its overlap
CHOICES = 40  # values of a column that is a filter, and classes of a confusion matrix
FILTERS = 6  # columns of the data that are filters
SHOWN = 12  # classes of a confusion matrix beside the others
Record = Mapping[str, Any]


@dataclass
class Gallery:
    """What was predicted.

    Attributes:
        records: those that are shown, as plain values.
        total: how many there are.
        graded: whether predictions are right or wrong, rather than good or bad.
        most: the best score that there is, at least 100.
        confident: whether predictions have a confidence.
        changed: how many the frozen model had wrong and the run right, and the reverse; None: not known.
        means: by column, by value the number of predictions and their mean score.
        confusions: by subtask the classes, and by reference and prediction how often.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    graded: bool = False
    most: float = 100.0
    confident: bool = False
    changed: tuple[int, int] | None = None
    means: dict[str, dict[str, tuple[int, float]]] = field(default_factory=dict)
    confusions: dict[str, tuple[list[str], list[list[int]]]] = field(default_factory=dict)


def gallery(
    path: Path,
    thumbnails: Thumbnails,
    pictures: Pictures | None = None,
    frozen: Path | None = None,
    problems: list[str] | None = None,
    most: int = MOST,
    started: Path = Path(),
) -> Gallery:
    """The predictions in a file.

    Args:
        path: `predictions.jsonl`; images are looked for from its folder, and from where the run was started.
        thumbnails: takes the images that are shown.
        pictures: finds images that are no files.
        frozen: the same file of the frozen model; None: there is none.
        problems: takes what cannot be read, a sentence each.
        most: how many are shown.
        started: the folder that the run was started in.
    """
    problems = problems if problems is not None else []
    made, counted = Gallery(), _Counts()
    before = {key_of(record): record for record in lines(frozen, [])} if frozen and frozen.exists() else {}
    doubts: list[tuple[float, int]] = []
    for place, record in enumerate(lines(path, problems)):
        counted.add(record, before.get(key_of(record)))
        doubt = (doubt_of(record), -place)
        heapq.heappush(doubts, doubt) if len(doubts) < most - most // 3 else heapq.heappushpop(doubts, doubt)
    made.total = counted.total
    if not made.total:
        return made
    counted.into(made, bool(before))
    # the surest mistakes, and of the rest every so manieth
    chosen = {-place for _, place in doubts}
    chosen |= set(range(0, made.total, max(1, -(-made.total // max(1, most // 3)))))
    images = _images(path)
    for place, record in enumerate(lines(path, [])):
        if place in chosen:
            folders = (path.parent, started)
            made.records.append(_shown(record, before.get(key_of(record)), folders, images, thumbnails, pictures))
    return made


def key_of(record: Record) -> tuple[str, ...]:
    """What tells a prediction from the others of its run: the sample, and in retrieval what was searched for."""
    return tuple(str(record.get(name, "")) for name in ("id", "direction", "query"))


def score_of(record: Record) -> float:
    """The score of a prediction; 0 where there is none."""
    value = record.get("score")
    return float(value) if isinstance(value, (int, float)) else 0.0


def confidence_of(record: Record) -> float | None:
    """How sure a prediction is, 0 to 1; None where its task does not say."""
    value = record.get("probability", record.get("token_probability"))
    if value is None:
        value = max(record.get("scores") or [None], default=None)
    return float(value) if isinstance(value, (int, float)) else None


def doubt_of(record: Record) -> float:
    """How much a prediction is to be looked at: the wrong ones of which the model is sure come first."""
    confidence = confidence_of(record)
    return (1.0 - min(score_of(record), 100.0) / 100.0) * (1.0 if confidence is None else confidence)


def boxes_of(values: Any) -> list[list[float]] | None:
    """Boxes, left, top, right, bottom of each in pixels; None: the values are something else."""
    if not isinstance(values, list) or not all(isinstance(box, list) and len(box) == 4 for box in values):
        return None
    return [[float(edge) for edge in box] for box in values]


def is_right(record: Record) -> bool:
    """Whether a prediction counts as right; of a box, that it overlaps by half."""
    return score_of(record) >= (BOX if "scores" in record else FULL)


class _Counts:
    """What is counted over all predictions."""

    def __init__(self) -> None:
        self.total = self.whole = self.mended = self.spoilt = 0
        self.most, self.confident = 0.0, False
        self.means: dict[str, dict[str, list[float]]] = {}
        self.pairs: dict[str, Counter[tuple[str, str]]] = {}

    def add(self, record: Record, before: Record | None) -> None:
        score = score_of(record)
        self.total += 1
        self.whole += score <= 0.0 or score >= FULL or "scores" in record
        self.most = max(self.most, score)
        self.confident = self.confident or confidence_of(record) is not None
        if before is not None:
            self.mended += is_right(record) and not is_right(before)
            self.spoilt += is_right(before) and not is_right(record)
        for name, value in filters_of(record).items():
            known = self.means.setdefault(name, {})
            if value in known or len(known) <= 10 * CHOICES:
                both = known.setdefault(value, [0, 0.0])
                both[0] += 1
                both[1] += score
        references = set(map(str, record.get("references") or [])) if _is_text(record) else set()
        pairs = self.pairs.setdefault(str(record.get("subtask", "")), Counter())
        if len(references) == 1 and (len(pairs) < 100 * CHOICES):
            pairs[references.pop(), str(record["prediction"])] += 1

    def into(self, made: Gallery, compared: bool) -> None:
        made.graded = self.most <= 100.0 and self.whole >= self.total / 2
        made.most, made.confident = max(100.0, self.most), self.confident
        made.changed = (self.mended, self.spoilt) if compared else None
        for name, values in self.means.items():
            if 1 < len(values) <= 10 * CHOICES and (len(values) <= CHOICES or len(values) < self.total / 4):
                ordered = sorted(values.items(), key=lambda item: -item[1][0])
                made.means[name] = {value: (int(count), total / count) for value, (count, total) in ordered}
        for subtask, pairs in self.pairs.items():
            if made.graded and (table := _confusion(pairs)):
                made.confusions[subtask] = table


def _confusion(pairs: Counter[tuple[str, str]]) -> tuple[list[str], list[list[int]]] | None:
    """The most frequent classes and how often each was taken for which; None: they are no classes."""
    references = Counter[str]()
    for (reference, _), count in pairs.items():
        references[reference] += count
    if not 2 <= len(references) <= max(CHOICES, sum(references.values()) // 8):
        return None
    names = [name for name, _ in references.most_common(SHOWN)]
    more = len(references) > SHOWN or any(prediction not in references for _, prediction in pairs)
    place = {name: number for number, name in enumerate(names)}
    side = len(names) + more
    table = [[0] * side for _ in range(side)]
    for (reference, prediction), count in pairs.items():
        table[place.get(reference, side - 1)][place.get(prediction, side - 1)] += count
    return [*names, *(["others"] if more else [])], table if sum(table[-1]) else table[:-1]


def _is_text(record: Record) -> bool:
    """Whether a prediction is an answer or a class: no box, mask, search result or reply."""
    apart = ("scores", "mask", "direction", "turn")
    return isinstance(record.get("prediction"), str) and not any(name in record for name in apart)


def filters_of(record: Record) -> dict[str, str]:
    """What predictions are filtered by: subtask, direction, the data's own columns, and the reference where it is one."""
    chosen = {name: str(record[name]) for name in ("subtask", "direction", "half", "routed") if name in record}
    columns = record.get("columns") if isinstance(record.get("columns"), dict) else {}
    chosen |= {str(name): _cut(str(value)) for name, value in islice((columns or {}).items(), FILTERS)}
    references = record.get("references") or []
    if _is_text(record) and references and len({*map(str, references)}) == 1:
        chosen["reference"] = _cut(str(references[0]))
    return chosen


def _images(path: Path) -> dict[str, str]:
    """By sample, the path of its image: what a search found is named by the sample."""
    images: dict[str, str] = {}
    for record in lines(path, []):
        if "direction" not in record:
            return {}
        if record.get("image"):
            images.setdefault(str(record.get("id")), str(record["image"]))
    return images


def _shown(
    record: Record,
    before: Record | None,
    folders: Sequence[Path],
    images: Mapping[str, str],
    thumbnails: Thumbnails,
    pictures: Pictures | None,
) -> dict[str, Any]:
    """A prediction as the page has it."""
    own = _places(record, folders, thumbnails, pictures)
    shown: dict[str, Any] = {"id": str(record.get("id", "")), "images": own, "f": filters_of(record)}
    if boxes := boxes_of(record.get("references")):
        shown["boxes"] = boxes
    else:
        shown["refs"] = [_cut(str(one)) for one in record.get("references") or []]
    for name in ("question", "query"):
        if record.get(name):
            shown["question"] = _cut(str(record[name]))
    if record.get("rank") is not None:
        shown["rank"] = record["rank"]
    if history := record.get("history"):
        shown["talk"] = [[_cut(str(text)) for text in turn] for turn in history]
    shown["answers"] = [answer_of(record, thumbnails)]
    if before is not None:
        shown["answers"].append(answer_of(before, thumbnails))
    if record.get("direction") and str(record.get("prediction")) in images:
        shown["answers"][0]["image"] = thumbnails.of_file(_located(images[str(record["prediction"])], folders))
    elif record.get("query") and pictures and (found := pictures(str(record.get("prediction")))):
        shown["answers"][0]["image"] = thumbnails.of_picture(f"sample {record['prediction']} 0", found[0])
    return shown


def answer_of(record: Record, thumbnails: Thumbnails) -> dict[str, Any]:
    """What one model said of a sample."""
    answer: dict[str, Any] = {"score": round(score_of(record), 2), "right": is_right(record)}
    if (confidence := confidence_of(record)) is not None:
        answer["sure"] = round(confidence, 4)
    if (boxes := boxes_of(record.get("prediction"))) is not None:
        answer["boxes"] = [[round(edge, 1) for edge in box] for box in boxes]
        answer["text"] = _cut(str(record.get("text") or f"{len(boxes)} box{'es' if len(boxes) != 1 else ''}"))
    else:
        answer["text"] = _cut(str(record.get("prediction", "")))
    if isinstance(record.get("mask"), str):
        answer["mask"] = thumbnails.of_mask(record["mask"])
    return answer


def _places(
    record: Record, folders: Sequence[Path], thumbnails: Thumbnails, pictures: Pictures | None
) -> list[int | None]:
    """The thumbnails of a sample's images."""
    paths: Sequence[str | None] = record.get("images") or [record.get("image")]
    known = pictures(str(record.get("id"))) if pictures and None in paths else ()
    places: list[int | None] = []
    for number, path in enumerate(paths):
        if path:
            places.append(thumbnails.of_file(_located(path, folders)))
        elif number < len(known):
            places.append(thumbnails.of_picture(f"sample {record.get('id')} {number}", known[number]))
        else:
            places.append(None)
    return places


def _located(path: str, folders: Sequence[Path]) -> Path:
    """An image file: from the first folder that has it."""
    return next((folder / path for folder in folders if (folder / path).exists()), folders[0] / path)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def disagreements(
    files: Sequence[Path],
    thumbnails: Thumbnails,
    pictures: Pictures | None = None,
    most: int = MOST // 3,
    started: Path = Path(),
) -> tuple[list[dict[str, Any]], int, int]:
    """The samples on which runs disagree: some are right, some are wrong; with scores that are not such, the widest apart first.

    Args:
        files: the predictions of each run.
        thumbnails: takes their images.
        pictures: finds images that are no files.
        most: how many are returned.
        started: the folder that the first of them was started in.

    Returns:
        The samples as the page has them, how many there are, and how many all runs have.
    """
    scores: list[dict[tuple[str, ...], float]] = [
        {
            key_of(record): 100.0 * is_right(record) if "scores" in record else score_of(record)
            for record in lines(file, [])
        }
        for file in files
    ]
    common = [key for key in scores[0] if all(key in own for own in scores[1:])]
    apart = {key: max(own[key] for own in scores) - min(own[key] for own in scores) for key in common}
    differing = sorted((key for key in common if apart[key] > 0.01), key=lambda key: -apart[key])
    chosen = {key: place for place, key in enumerate(differing[:most])}
    shown: dict[int, dict[str, Any]] = {}
    for number, file in enumerate(files):
        for record in _of(file, chosen):
            place = chosen[key_of(record)]
            if number == 0:
                shown[place] = _shown(record, None, (file.parent, started), {}, thumbnails, pictures)
            elif place in shown:
                shown[place]["answers"].append(answer_of(record, thumbnails))
    return [shown[place] for place in sorted(shown)], len(differing), len(common)


def _of(file: Path, chosen: Mapping[tuple[str, ...], int]) -> Iterator[Record]:
    seen = set()
    for record in lines(file, []):
        if (key := key_of(record)) in chosen and key not in seen:
            seen.add(key)
            yield record
