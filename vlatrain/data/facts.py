"""What a data set is like, found without a model: its images, classes, answers and captions, and what is likely wrong with them.

Nothing here keeps a training from starting: what cannot be used was refused when the data was read. Facts are JSON values.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlatrain.config.errors import UserError
from vlatrain.data.box_facts import box_facts, box_findings
from vlatrain.data.duplicates import same_content
from vlatrain.data.features import FeaturePicture
from vlatrain.data.images import FilePicture, header_of, identity, is_shown
from vlatrain.data.lazy import distinct as each_once
from vlatrain.data.sample import Picture, Sample

SHARED_CAPTIONS = "shared captions"  # the kind of finding that a run tells with what its scores can reach
UNEQUAL = 5  # times as many samples in the largest class as in the smallest: from here on it is told
UNSEEN = 0.1  # share of samples with answers that training never shows: the same
SMALL = 16  # pixels of the shorter side of an image that shows nothing
SHOWN = 3  # examples that a message names
LISTED = 1000  # classes whose counts are written
DECODED, PATIENCE = 16, 2.0  # images of a split that are decoded to measure what that costs, and the most seconds
SCENE = 64  # pixels of a side of generated scenes
COLOURS, GREYS = 512, 128  # distinct values in so many pixels of a photograph; drawings have fewer
PHOTOGRAPHS = ("JPEG", "MPO", "WEBP", "HEIF", "AVIF")  # formats of what cameras and the web have
IGNORED = re.compile(r"[\s_\-.,;:!?'\"()/]+")  # what names may differ in and look the same


class Finding(NamedTuple):
    """Something that is likely wrong.

    Attributes:
        kind: what sort of thing, in a word or two.
        message: what, where first, and what to do.
    """

    kind: str
    message: str


def facts_of(
    samples: Mapping[str, Sequence[Sample]], decoded: int = DECODED, patience: float = PATIENCE
) -> dict[str, Any]:
    """The facts of a data set, and what is likely wrong with it.

    Args:
        samples: the samples by split; one that is there several times by its id counts once.
        decoded: images of a split that are decoded to measure what that costs.
        patience: the most seconds for it.

    Returns:
        `splits`: facts by split; `warnings`: each finding with `kind` and `message`.
    """
    distinct = {split: list(each_once(given)) for split, given in samples.items()}
    content = same_content(one for given in distinct.values() for sample in given for one in sample.pictures)
    seen = {answer for sample in distinct.get("train", ()) for answer in sample.answers}
    splits = {}
    for split, given in distinct.items():
        pictures = {identity(one): one for sample in given for one in sample.pictures if is_shown(one)}
        facts: dict[str, Any] = {"samples": len(given), "images": _images(pictures, content, decoded, patience)}
        if hidden := sum(not is_shown(sample.image) for sample in given):
            facts["images"]["text_only"] = hidden
        if several := Counter(len(sample.pictures) for sample in given if sample.more):
            facts["images"]["several"] = {"samples": several.total(), "most": max(several)}
        facts |= _classes(given) | _answers(split, given, seen) | _captions(given, content) | box_facts(given)
        splits[split] = facts
    findings = [
        *_shared_images(distinct, content),
        *_repeated(distinct, content),
        *_names(distinct),
        *_contradictions(distinct, content),
        *(Finding(*found) for found in box_findings(distinct, content, _place)),
        *_unequal(splits.get("train", {})),
        *_unseen(distinct, seen),
        *_shared_captions(splits),
        *_small_images(distinct),
    ]
    return {"splits": splits, "warnings": [finding._asdict() for finding in findings]}


# -- facts --


def _images(
    pictures: Mapping[str, Picture], content: Mapping[str, str], decoded: int, patience: float
) -> dict[str, Any]:
    headers = [header for picture in pictures.values() if (header := header_of(picture))]
    formats = Counter(header.format for header in headers)
    for picture in pictures.values():
        if header_of(picture) is None:
            formats["features" if isinstance(picture, FeaturePicture) else "generated"] += 1
    facts: dict[str, Any] = {
        "number": len(pictures),
        "distinct": len({content[key] for key in pictures}),
        "formats": dict(formats.most_common()),
    }
    if headers:
        facts |= {
            "width": _spread([header.width for header in headers]),
            "height": _spread([header.height for header in headers]),
            "modes": dict(Counter(header.mode for header in headers).most_common()),
            "bytes": sum(header.bytes for header in headers),
        }
    return facts | _decoding(list(pictures.values()), decoded, patience)


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def _decoding(pictures: Sequence[Picture], most: int, patience: float) -> dict[str, Any]:
    """What it costs to decode an image, and how many of those that were look like photographs: of a seeded few."""
    stored = [picture for picture in pictures if not isinstance(picture, FeaturePicture)]
    times, photographs, began = [], 0, time.perf_counter()
    for picture in random.Random("decode").sample(stored, min(most, len(stored))):
        start = time.perf_counter()
        try:
            image = picture.load()
        except UserError:  # what is broken was named when the data was read
            continue
        times.append(time.perf_counter() - start)
        photographs += _is_photograph(picture, image)
        if time.perf_counter() - began > patience:
            break
    if not times:
        return {}
    return {"decode_ms": round(1000 * median(times), 3), "decoded": len(times), "photographs": photographs}


def _is_photograph(picture: Picture, image: Image.Image) -> bool:
    header = header_of(picture)
    if header is None:  # generated
        return False
    if header.format in PHOTOGRAPHS:
        return True
    if max(image.size) <= SCENE:
        return False
    pixels = np.asarray(image.resize((SCENE, SCENE), Image.Resampling.NEAREST)).reshape(-1, 3)
    colours = len(np.unique(pixels, axis=0))
    return colours >= (GREYS if bool((pixels == pixels[:, :1]).all()) else COLOURS)


def _classes(samples: Sequence[Sample]) -> dict[str, Any]:
    counts = Counter(sample.label for sample in samples if sample.label)
    if not counts:
        return {}
    largest, most = counts.most_common(1)[0]
    return {
        "classes": {
            "number": len(counts),
            "largest": largest,
            "largest_share": round(100 * most / counts.total(), 2),
            "smallest": min(counts.items(), key=lambda item: item[1])[0],
            "counts": dict(counts.most_common(LISTED)),
        }
    }


def _answers(split: str, samples: Sequence[Sample], seen: set[str]) -> dict[str, Any]:
    counts = Counter(answer for sample in samples for answer in dict.fromkeys(sample.answers))
    if not counts:
        return {}
    answered = [sample for sample in samples if sample.answers]
    common, most = counts.most_common(1)[0]
    facts = {
        "questions": len({sample.question for sample in samples}),
        "distinct": len(counts),
        "each": _spread([len(sample.answers) for sample in answered]),
        "most_frequent": common,
        "most_frequent_share": round(100 * most / len(answered), 2),
    }
    if split != "train" and seen:
        facts["unseen_share"] = round(100 * sum(seen.isdisjoint(one.answers) for one in answered) / len(answered), 2)
    return {"answers": facts}


def _captions(samples: Sequence[Sample], content: Mapping[str, str]) -> dict[str, Any]:
    images: dict[str, set[str]] = {}
    number = repeated = 0
    for sample in samples:
        number += len(sample.captions)
        repeated += len(sample.captions) - len(set(sample.captions))
        for caption in sample.captions:
            images.setdefault(caption, set()).add(_seen(sample, content))
    if not images:
        return {}
    most = max(images, key=lambda caption: len(images[caption]))
    shared = sum(len(images[caption]) > 1 for sample in samples for caption in sample.captions)
    return {
        "captions": {
            "number": number,
            "distinct": len(images),
            "each": _spread([len(sample.captions) for sample in samples if sample.captions]),
            "repeated": repeated,
            "shared": shared,
            "most_shared": most,
            "most_shared_images": len(images[most]),
        }
    }


# -- findings --


def _shared_images(samples: Mapping[str, Sequence[Sample]], content: Mapping[str, str]) -> Iterable[Finding]:
    """Images that are in two splits."""
    first: dict[str, dict[str, Sample]] = {}
    for split, given in samples.items():
        for sample in given:
            for shown in sample.pictures:
                first.setdefault(split, {}).setdefault(content[identity(shown)], sample)
    for one, two in combinations(first, 2):
        both = [key for key in first[two] if key in first[one]]
        if both:
            pair = f"{_place(first[two][both[0]])} = {_place(first[one][both[0]])}"
            why = "scores on them say nothing of new images" if one == "train" else "they choose the best step, too"
            yield Finding(
                "shared images",
                f"data.{two}: {len(both):,} of its {len(first[two]):,} images are in data.{one}, too, by content (the "
                f"first: {pair}): {why}; leave them out of one",
            )


def _repeated(samples: Mapping[str, Sequence[Sample]], content: Mapping[str, str]) -> Iterable[Finding]:
    """Samples of a split that are there twice, with all their texts."""
    for split, given in samples.items():
        first: dict[tuple[Any, ...], Sample] = {}
        twice = []
        for one in given:
            said = (one.question, one.answers, one.captions, one.label, one.turns, one.boxes)
            before = first.setdefault((_seen(one, content), *said), one)
            if before is not one:
                twice.append((one, before))
        if twice:
            one, before = twice[0]
            yield Finding(
                "repeated samples",
                f"data.{split}: {_of(len(twice), len(given), 'samples')} repeat others, image and texts (the first: "
                f"{_place(one)} = {_place(before)})",
            )


def _names(samples: Mapping[str, Sequence[Sample]]) -> Iterable[Finding]:
    """Classes whose names differ in nothing that matters."""
    counts = Counter(sample.label for given in samples.values() for sample in given if sample.label)
    alike: dict[str, list[str]] = {}
    for label, _ in counts.most_common():
        alike.setdefault(IGNORED.sub("", label).casefold() or label, []).append(label)
    for labels in alike.values():
        if len(labels) > 1:
            named = " and ".join(f"'{label}' ({counts[label]:,})" for label in labels[:SHOWN])
            more = f" and {len(labels) - SHOWN:,} more" if len(labels) > SHOWN else ""
            yield Finding(
                "similar class names",
                f"classes {named}{more} differ by case, spaces or punctuation only: give them one name, unless they are two "
                "things",
            )


def _contradictions(samples: Mapping[str, Sequence[Sample]], content: Mapping[str, str]) -> Iterable[Finding]:
    """Images with several labels, and questions about one image with different answers in different rows."""
    labels: dict[str, dict[str, Sample]] = {}
    answers: dict[tuple[str, str], dict[frozenset[str], Sample]] = {}
    for given in samples.values():
        for sample in given:
            image = _seen(sample, content)
            if sample.label:
                labels.setdefault(image, {}).setdefault(sample.label, sample)
            if sample.answers:
                question = " ".join(sample.question.casefold().split())
                answers.setdefault((image, question), {}).setdefault(frozenset(sample.answers), sample)
    if several := [found for found in labels.values() if len(found) > 1]:
        named = ", ".join(f"'{label}' in {_place(sample)}" for label, sample in [*several[0].items()][:SHOWN])
        yield Finding(
            "contradictory labels",
            f"{_number(len(several), 'image has', 'images have')} several labels, by content (the first: {named}): keep one",
        )
    if unlike := [found for found in answers.values() if len(found) > 1 and not frozenset.intersection(*found)]:
        named = ", ".join(f"'{min(texts)}' in {_place(sample)}" for texts, sample in [*unlike[0].items()][:SHOWN])
        yield Finding(
            "contradictory answers",
            f"{_number(len(unlike), 'question', 'questions')} about one image {'has' if len(unlike) == 1 else 'have'} different "
            f"answers in different rows (the first: {named}): of several annotators, put them into one row's `answers`",
        )


def _unequal(train: Mapping[str, Any]) -> Iterable[Finding]:
    """Training classes of very unequal size."""
    if (facts := train.get("classes")) and facts["number"] > 1:
        counts, total = facts["counts"], train["samples"]
        most, least = counts[facts["largest"]], min(counts.values())
        if most >= UNEQUAL * least:
            yield Finding(
                "unequal classes",
                f"data.train: class '{facts['largest']}' has {most:,} of {total:,} samples ({facts['largest_share']:.1f} %), "
                f"'{facts['smallest']}' {least:,}: to say '{facts['largest']}' always is right so often: compare with that; "
                "data.balance=classes trains on all alike, and task.metric=macro_f1 scores them alike",
            )


def _unseen(samples: Mapping[str, Sequence[Sample]], seen: set[str]) -> Iterable[Finding]:
    """Answers that training never shows."""
    for split, given in samples.items():
        answered = [sample for sample in given if sample.answers]
        new = [sample for sample in answered if seen.isdisjoint(sample.answers)]
        if seen and split != "train" and len(new) >= UNSEEN * len(answered) > 0:
            yield Finding(
                "unseen answers",
                f"data.{split}: no answer of {_of(len(new), len(answered), 'samples')} is among those of data.train (the first: "
                f"'{new[0].answers[0]}', {_place(new[0])}): a list of answers from data.train cannot have them",
            )


def _shared_captions(splits: Mapping[str, Mapping[str, Any]]) -> Iterable[Finding]:
    """Captions of several images, and captions that an image has twice."""
    facts = {split: found["captions"] for split, found in splits.items() if "captions" in found}
    shared = {split: found for split, found in facts.items() if found["shared"]}
    if shared:
        where = ", ".join(f"{_of(one['shared'], one['number'], f'in data.{split}')}" for split, one in shared.items())
        most = max(shared.values(), key=lambda one: int(one["most_shared_images"]))
        yield Finding(
            SHARED_CAPTIONS,
            f"captions of several images: {where} (most often: '{_short(most['most_shared'])}', of "
            f"{most['most_shared_images']:,} images): retrieval cannot tell these images apart",
        )
    if twice := {split: found for split, found in facts.items() if found["repeated"]}:
        where = ", ".join(f"{_of(one['repeated'], one['number'], f'in data.{split}')}" for split, one in twice.items())
        yield Finding("repeated captions", f"captions that their image has already: {where}")


def _small_images(samples: Mapping[str, Sequence[Sample]]) -> Iterable[Finding]:
    """Images too small to show anything."""
    first: dict[str, Sample] = {}
    for given in samples.values():
        for sample in given:
            for shown in sample.pictures:
                first.setdefault(identity(shown), replace(sample, image=shown))
    small = [one for one in first.values() if (header := header_of(one.image)) and min(header[:2]) < SMALL]
    if small:
        header = header_of(small[0].image)
        assert header is not None
        yield Finding(
            "small images",
            f"{_of(len(small), len(first), 'images')} have a side of less than {SMALL} pixels (the first: {_place(small[0])}, "
            f"{header.width} x {header.height})",
        )


def _seen(sample: Sample, content: Mapping[str, str]) -> str:
    """What tells the images of a sample, in their order, from others by content."""
    return "\0".join(content[identity(one)] for one in sample.pictures)


def _place(sample: Sample) -> str:
    """Where a sample is, and its image's file where there is one."""
    place = sample.source or sample.id
    return f"{place} ({sample.image.path})" if isinstance(sample.image, FilePicture) else place


def _of(count: int, total: int, what: str) -> str:
    return f"{count:,} of {total:,} {what} ({100 * count / total:.3g} %)"


def _number(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
