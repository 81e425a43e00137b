"""Facts of a data set, and what is likely wrong with it: each fault once, a sound set with none."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlatrain.data.facts import facts_of
from vlatrain.data.images import BytesPicture, FilePicture
from vlatrain.data.sample import Sample


def picture(number: int, side: int = 32) -> BytesPicture:
    """An image that no other number has."""
    data = io.BytesIO()
    Image.new("RGB", (side, 24), (number % 251, number // 251, 7)).save(data, "PNG")
    return BytesPicture(data.getvalue(), f"{number}.png")


def asked(number: int, answer: str = "yes", image: int | None = None) -> Sample:
    return Sample(
        f"q{number}",
        picture(number if image is None else image),
        question=f"is it {number % 3}?",
        answers=(answer,),
        source=f"t.jsonl:{number}",
    )


def shown(number: int, label: str, image: int | None = None) -> Sample:
    return Sample(f"c{number}", picture(number if image is None else image), label=label, source=f"t.csv:{number}")


def described(number: int, *captions: str) -> Sample:
    return Sample(f"d{number}", picture(number), captions=captions or (f"number {number}",), source=f"d.json:{number}")


def boxed(number: int, *boxes: tuple[float, float, float, float], image: int | None = None) -> Sample:
    """The thing of a number, by default in a corner of an image of its own."""
    shown = picture(number if image is None else image)
    return Sample(f"b{number}", shown, question="the {thing}", source=f"b.jsonl:{number}", boxes=boxes or (CORNER,))


CORNER, MIDDLE = (0.0, 0.0, 0.4, 0.5), (0.3, 0.3, 0.7, 0.7)
BOXED = {"train": [boxed(i) for i in range(20)], "eval": [boxed(i) for i in range(50, 60)]}
ASKED = {"train": [asked(i) for i in range(20)], "eval": [asked(i) for i in range(50, 60)]}
SHOWN = {
    "train": [shown(i, "ab"[i % 2]) for i in range(20)],
    "eval": [shown(i, "ab"[i % 2]) for i in range(50, 60)],
}
DESCRIBED = {"train": [described(i) for i in range(20)], "eval": [described(i) for i in range(50, 60)]}


def with_more(base: dict[str, list[Sample]], **more: Sample) -> dict[str, list[Sample]]:
    return {split: [*given, *([more[split]] if split in more else [])] for split, given in base.items()}


#: By fault: the samples, the kind, and what its message has to say.
FAULTS = {
    "an image in two splits": (
        with_more(ASKED, eval=asked(99, image=3)),
        "shared images",
        "data.eval: 1 of its 11 images are in data.train, too, by content (the first: t.jsonl:99 = t.jsonl:3)",
    ),
    "a sample twice": (
        with_more(ASKED, train=replace(asked(4), id="again", source="t.jsonl:77")),
        "repeated samples",
        "data.train: 1 of 21 samples (4.76 %) repeat others, image and texts (the first: t.jsonl:77 = t.jsonl:4)",
    ),
    "answers of other rows": (
        with_more(ASKED, train=replace(asked(4, "no"), id="again", source="t.jsonl:77")),
        "contradictory answers",
        "1 question about one image has different answers in different rows (the first: 'yes' in t.jsonl:4, 'no' in t.jsonl:77)",
    ),
    "answers that are not trained on": (
        {**ASKED, "eval": [asked(i, "maybe" if i > 57 else "yes") for i in range(50, 60)]},
        "unseen answers",
        "data.eval: no answer of 2 of 10 samples (20 %) is among those of data.train (the first: 'maybe', t.jsonl:58)",
    ),
    "names by case": (
        {**SHOWN, "train": [shown(i, ("crack", "Crack_", "b")[i % 3]) for i in range(21)]},
        "similar class names",
        "classes 'crack' (7) and 'Crack_' (7) differ by case, spaces or punctuation only",
    ),
    "two labels of an image": (
        with_more(SHOWN, train=shown(30, "b", image=2)),
        "contradictory labels",
        "1 image has several labels, by content (the first: 'a' in t.csv:2, 'b' in t.csv:30)",
    ),
    "unequal classes": (
        {**SHOWN, "train": [shown(i, "a" if i < 20 else "b") for i in range(24)]},
        "unequal classes",
        "data.train: class 'a' has 20 of 24 samples (83.3 %), 'b' 4",
    ),
    "captions of several images": (
        {**DESCRIBED, "train": [*DESCRIBED["train"], described(30, "number 3"), described(31, "number 3")]},
        "shared captions",
        "captions of several images: 3 of 22 in data.train (13.6 %) (most often: 'number 3', of 3 images)",
    ),
    "a caption twice": (
        with_more(DESCRIBED, train=described(30, "twice", "twice")),
        "repeated captions",
        "captions that their image has already: 1 of 22 in data.train (4.55 %)",
    ),
    "boxes of other rows": (
        with_more(BOXED, train=boxed(30, MIDDLE, image=4)),
        "contradictory boxes",
        "1 expression of one image has other boxes in different rows (the first: 'the {thing}' in b.jsonl:4 and b.jsonl:30)",
    ),
    "a box twice": (
        with_more(BOXED, train=boxed(30, CORNER, MIDDLE, CORNER)),
        "repeated boxes",
        "data.train: 1 of 21 rows have a box twice (the first: b.jsonl:30)",
    ),
    "a line for a box": (
        with_more(BOXED, eval=boxed(70, (0.2, 0.1, 0.205, 0.9))),
        "thin boxes",
        "data.eval: 1 of 11 boxes have a side of less than 1 % of the image's (the first: b.jsonl:70)",
    ),
    "whole images": (
        {**BOXED, "train": [boxed(i, (0.0, 0.0, 0.98, 1.0) if i < 3 else CORNER) for i in range(20)]},
        "boxes of whole images",
        "data.train: 3 of 20 boxes are nearly all of their image (the first: b.jsonl:0): is data.boxes what they are",
    ),
    "a strip of an image": (
        with_more(ASKED, train=replace(asked(30), image=picture(30, side=9))),
        "small images",
        "1 of 31 images (3.23 %) have a side of less than 16 pixels (the first: t.jsonl:30, 9 x 24)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_once_and_alone(fault: str) -> None:
    samples, kind, message = FAULTS[fault]
    (found,) = facts_of(samples)["warnings"]
    assert found["kind"] == kind
    assert message in found["message"]


@pytest.mark.parametrize("samples", [ASKED, SHOWN, DESCRIBED, BOXED], ids=["asked", "shown", "described", "boxed"])
def test_nothing_is_found_in_a_sound_set(samples: dict[str, list[Sample]]) -> None:
    assert facts_of(samples)["warnings"] == []


def test_names_that_differ_in_more_are_no_fault() -> None:
    names = ["C", "C++", "C#", "+", "-", "a 1", "a 2", "猫", "狗"]
    assert facts_of({"train": [shown(i, names[i % 9]) for i in range(18)]})["warnings"] == []


def test_facts_are_those_of_the_samples(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(noise[:40]).save(tmp_path / "b.jpg")
    Image.new("L", (20, 30)).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes((tmp_path / "c.png").read_bytes())
    files = [FilePicture(tmp_path / name) for name in ("a.png", "b.jpg", "c.png", "d.png")]
    train = [Sample(str(i), file, label="xxy"[i % 3], source=f"{i}") for i, file in enumerate(files)]
    facts = facts_of({"train": [*train, train[0]]})["splits"]["train"]
    assert facts["samples"] == 4
    images = facts["images"]
    assert (images["number"], images["distinct"]) == (4, 3)
    assert images["width"] == {"min": 20, "median": 40.0, "max": 60}
    assert images["height"] == {"min": 30, "median": 35.0, "max": 80}
    assert images["modes"] == {"RGB": 2, "L": 2}
    assert images["formats"] == {"PNG": 3, "JPEG": 1}
    assert images["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (images["decoded"], images["photographs"]) == (4, 2)
    assert images["decode_ms"] > 0
    assert facts["classes"]["counts"] == {"x": 3, "y": 1}
    assert facts["classes"]["largest_share"] == 75.0


def test_drawings_are_no_photographs() -> None:
    from vlatrain.data.shapes import build

    drawn = [
        Sample(str(i), BytesPicture.from_image(sample.image.load()))
        for i, sample in enumerate(build("vqa", "train", 16, 0))
    ]
    assert facts_of({"train": drawn})["splits"]["train"]["images"]["photographs"] == 0


def test_answers_and_captions_are_counted() -> None:
    facts = facts_of({**ASKED, "test": [asked(70, "never"), asked(71)]})["splits"]
    assert facts["train"]["answers"]["most_frequent_share"] == 100.0
    assert "unseen_share" not in facts["train"]["answers"]
    assert (facts["eval"]["answers"]["unseen_share"], facts["test"]["answers"]["unseen_share"]) == (0.0, 50.0)
    captions = facts_of({"train": [described(1, "a", "b"), described(2, "a")]})["splits"]["train"]["captions"]
    assert (captions["number"], captions["distinct"], captions["shared"]) == (3, 2, 2)


def test_boxes_are_counted_and_those_in_two_splits_named() -> None:
    train = [boxed(1, CORNER, MIDDLE), replace(boxed(2), boxes=()), replace(boxed(3), question="a dot")]
    facts = facts_of({"train": [*train, boxed(4)], "eval": [boxed(5, image=1)]})
    boxes = facts["splits"]["train"]["boxes"]
    assert (boxes["number"], boxes["without"], boxes["expressions"]) == (4, 1, 2)
    assert boxes["each"] == {"min": 0, "median": 1.0, "max": 2}
    assert boxes["area"] == {"min": 16.0, "median": 20.0, "max": 20.0}
    assert boxes["classes"] == {
        "the {thing}": {"samples": 3, "boxes": 3, "area": 20.0},
        "a dot": {"samples": 1, "boxes": 1, "area": 20.0},
    }
    assert [found["kind"] for found in facts["warnings"]] == ["shared images", "shared expressions"]
    assert "1 of its 1 expressions are in data.train, too, of the same image (the first: b.jsonl:5 = b.jsonl:1)" in str(
        facts
    )
