from __future__ import annotations

import base64
import io
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.reporting.pages.folders import answers, made_run
from vlatrain.data.masks import as_text
from vlatrain.reporting.pages.gallery import disagreements, doubt_of, gallery, is_right
from vlatrain.reporting.pages.thumbnails import Thumbnails, colour_of


def written(folder: Path, records: list[dict[str, Any]], name: str = "predictions.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / name


def test_answers_are_counted_and_shown_with_their_images(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", answers(), images=6)
    thumbnails = Thumbnails()
    found = gallery(run / "predictions.jsonl", thumbnails)
    assert (found.total, found.graded, found.confident, found.changed) == (6, True, True, None)
    assert found.means["topic"] == {"easy": (3, pytest.approx(200 / 3)), "hard": (3, pytest.approx(200 / 3))}
    assert found.confusions[""] == (["dog", "fish", "others"], [[2, 0, 1], [0, 2, 1]])
    first = found.records[0]
    assert first["refs"] == ["dog"]
    assert first["f"] == {"topic": "easy", "reference": "dog"}
    assert first["answers"] == [{"score": 100.0, "right": True, "sure": 0.143, "text": "dog"}]
    assert thumbnails.sizes[first["images"][0]] == (40, 30)


def test_of_many_the_surest_mistakes_are_shown(tmp_path: Path) -> None:
    records = answers(300, wrong=(7, 150, 293))
    found = gallery(written(tmp_path, records), Thumbnails(), most=30)
    assert {f"eval-{number}" for number in (7, 150, 293)} <= {record["id"] for record in found.records}
    assert len(found.records) <= 31
    assert found.total == 300
    assert doubt_of(records[293]) > doubt_of(records[7]) > doubt_of(records[8]) == 0


def test_of_what_was_written_the_surest_mistakes_come_first(tmp_path: Path) -> None:
    """Captions and replies have the probability of a token, and not that of the whole text."""
    about = {"references": ["a red cat"], "prediction": "a dog", "score": 20.0}
    records = [{"id": str(number), **about, "token_probability": number / 10} for number in range(10)]
    found = gallery(written(tmp_path, records), Thumbnails(), most=6)
    assert found.confident
    assert {"9", "8", "7", "6"} <= {record["id"] for record in found.records}
    assert found.records[-1]["answers"][0]["sure"] == 0.9


def test_what_has_changed_against_the_frozen_model_is_counted(tmp_path: Path) -> None:
    own, before = written(tmp_path, answers()), written(tmp_path, answers(wrong=(0, 1, 2)), "predictions-frozen.jsonl")
    found = gallery(own, Thumbnails(), frozen=before)
    assert found.changed == (2, 1)
    assert [answer["right"] for answer in found.records[0]["answers"]] == [True, False]


def test_boxes_are_right_from_half_an_overlap_on(tmp_path: Path) -> None:
    box = {
        "id": "a",
        "question": "the cat",
        "prediction": [[1, 2, 3, 4]],
        "scores": [0.7],
        "references": [[1, 2, 4, 4]],
    }
    found = gallery(
        written(tmp_path, [{**box, "score": 60.0}, {**box, "id": "b", "prediction": [], "scores": [], "score": 0.0}]),
        Thumbnails(),
    )
    assert [record["answers"][0]["right"] for record in found.records] == [True, False]
    assert found.records[0]["boxes"] == [[1.0, 2.0, 4.0, 4.0]]
    assert found.records[0]["answers"][0]["sure"] == 0.7
    assert found.records[1]["answers"][0]["text"] == "0 boxes"
    assert found.graded
    assert not found.confusions
    assert not is_right({"score": 60.0})


def test_searches_show_the_image_that_was_found(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", images=2)
    common = {"rank": 2, "score": 0.0, "image": "images/0.png", "id": "one"}
    records = [
        {**common, "direction": "image_to_text", "prediction": "a dog", "references": ["a cat"]},
        {**common, "direction": "image_to_text", "prediction": "a dog", "id": "two", "image": "images/1.png"},
        {**common, "direction": "text_to_image", "query": "a cat", "prediction": "two", "references": ["one"]},
    ]  # fmt: skip
    thumbnails = Thumbnails()
    found = gallery(written(run, records), thumbnails)
    last = found.records[-1]
    assert thumbnails.sizes[last["answers"][0]["image"]] == (41, 30)
    assert (last["question"], last["rank"], last["f"]) == ("a cat", 2, {"direction": "text_to_image"})


def test_turns_and_masks_are_shown(tmp_path: Path) -> None:
    stream = io.BytesIO()
    mask = Image.new("L", (4, 4))
    mask.putpixel((1, 1), 2)
    mask.save(stream, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    records = [
        {"id": "a", "turn": 2, "question": "and now?", "history": [["hi", "hello"]], "prediction": "x", "score": 3.0},
        {"id": "b", "prediction": "sky 90 %", "references": ["sky 80 %"], "score": 70.0, "mask": url},
    ]  # fmt: skip
    thumbnails = Thumbnails()
    found = gallery(written(tmp_path, records), thumbnails)
    assert found.records[0]["talk"] == [["hi", "hello"]]
    shown = Image.open(
        io.BytesIO(base64.b64decode(thumbnails.urls[found.records[1]["answers"][0]["mask"]].partition(",")[2]))
    )
    assert shown.getpixel((0, 0))[3] == 0
    assert shown.getpixel((1, 1))[3] > 0
    assert len(thumbnails.classes) == 2, "which the page has a legend of"
    assert not found.graded


def test_the_colours_of_classes_differ_and_a_mask_has_no_other() -> None:
    colours = [colour_of(number) for number in range(24)]
    assert colours[0][3] == 0
    assert len({*colours}) == 24
    apart = [sum(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in combinations(colours[1:], 2)]
    assert min(apart) > 80
    thumbnails = Thumbnails()
    ids = np.arange(301 * 300, dtype=np.uint16).reshape(301, 300) // 30000 * 299  # 0, 299, 598: more than a byte holds
    thumbnails.of_mask(as_text(ids))
    assert thumbnails.classes == {0, 299, 598}
    with Image.open(io.BytesIO(base64.b64decode(thumbnails.urls[0].partition(",")[2]))) as shown:
        found = shown.convert("RGBA").getcolors()
    assert found is not None
    assert {colour for _, colour in found if colour[3]} == {colour_of(299), colour_of(598)}


def test_images_that_are_too_many_or_gone_are_counted(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", answers(), images=4)
    few = Thumbnails(most=2)
    gallery(run / "predictions.jsonl", few)
    assert (len(few.urls), few.beyond) == (2, 4)
    some = Thumbnails()
    gallery(run / "predictions.jsonl", some)
    assert (len(some.urls), some.missing) == (4, 2)
    small = Thumbnails(most_bytes=1)
    gallery(run / "predictions.jsonl", small)
    assert len(small.urls) == 1


def test_runs_disagree_where_some_are_right(tmp_path: Path) -> None:
    files = [written(tmp_path, answers(wrong=wrong), f"{wrong[1]}.jsonl") for wrong in ((1, 2), (1, 5))]
    records, differing, common = disagreements(files, Thumbnails())
    assert (differing, common) == (2, 6)
    assert {record["id"] for record in records} == {"eval-2", "eval-5"}
    assert [answer["right"] for answer in records[0]["answers"]] == [False, True]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    file = written(tmp_path, answers())
    file.write_text(file.read_text() + '{"id": "ev')
    problems: list[str] = []
    assert gallery(file, Thumbnails(), problems=problems).total == 6
    assert problems == ["predictions.jsonl: 1 lines cannot be read, and are left out"]


def test_images_are_found_from_where_the_run_was_started(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", answers(2))
    made_run(tmp_path / "started", images=2)
    thumbnails = Thumbnails()
    gallery(run / "predictions.jsonl", thumbnails, started=tmp_path / "started")
    assert (len(thumbnails.urls), thumbnails.missing) == (2, 0)
