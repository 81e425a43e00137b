"""Grounding conversations in every documented form come out as the same expressions and boxes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.writing import files, load_train, problems_of, write_records
from vlatrain.config import DataConfig, TaskConfig
from vlatrain.data import load, load_inputs
from vlatrain.data.boxes import Boxes, in_shares

WIDTH, HEIGHT = 80, 40
DOG, SHEEP = (0.25, 0.5, 0.5, 0.75), (0.0, 0.0, 0.1, 0.2)  # in pixels 20, 20, 40, 30 and 0, 0, 8, 8
LLAVA = "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: the dog"
QWEN = "Locate the dog, output its bbox coordinates using JSON format."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "0.png")
    return tmp_path


def messages(*said: str) -> list[dict[str, Any]]:
    speakers = ["user", "assistant"] * len(said)
    return [{"role": role, "content": text} for role, text in zip(speakers, said, strict=False)]


def llava(*said: str) -> list[dict[str, Any]]:
    return [{"from": "human" if one["role"] == "user" else "gpt", "value": one["content"]} for one in messages(*said)]


def row(**columns: Any) -> dict[str, Any]:
    return {"image": "0.png", **columns}


SWIFT = {"ref": ["dog"], "bbox": [[20, 20, 40, 30]]}
TAGGED = "<|box_start|>(250,500),(500,750)<|box_end|>"
JSON = '{"bbox_2d": [20, 20, 40, 30], "label": "dog"}'
FINETUNE = "Locate dog in this image and output the bbox coordinates in JSON format."
NORM1 = {**SWIFT, "bbox": [[*DOG]], "bbox_type": "norm1"}
INTERNVL = "Where is <ref>a dog</ref>?", "<ref>dog</ref><box>[[250, 500, 500, 750]]</box>"
ONE: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "llava": ("the dog", row(conversations=llava(LLAVA, "[0.25,0.50,0.50,0.75]")), {}),
    "llava, padded": ("the dog", row(conversations=llava(LLAVA, "[0.25, 0.5, 0.5, 0.625]")), {"boxes": "xyxy_padded"}),
    "shikra": ("Where is the dog?", row(conversations=llava("Where is the dog?", "At [0.250,0.500,0.500,0.750].")), {}),
    "qwen-vl": ("dog", row(conversations=llava("Find it.", "<ref>dog</ref><box>(250,500),(500,750)</box>")), {}),
    "qwen2-vl": ("dog", row(messages=messages("Find <|object_ref_start|>dog<|object_ref_end|>", TAGGED)), {}),
    "internvl": ("a dog", row(conversations=llava(*INTERNVL)), {}),
    "qwen2.5-vl": ("the dog", row(messages=messages(QWEN, f"```json\n[{JSON}]\n```")), {}),
    "qwen2.5-vl, finetune": ("dog", row(conversations=llava(FINETUNE, '{\n"bbox_2d": [20, 20, 40, 30]\n}')), {}),
    "qwen3-vl": ("the dog", row(messages=messages(QWEN, '{"bbox_2d": [250, 500, 500, 750]}')), {"boxes": "xyxy_1000"}),
    "ms-swift": ("dog", row(messages=messages("<image>Find the <ref-object>", "<bbox>"), objects=SWIFT), {}),
    "ms-swift, norm1": ("dog", row(messages=messages("Find <ref-object>", "<bbox>"), objects=NORM1), {}),
    "ms-swift, query": ("dog", row(query="Where?", response="<ref-object><bbox>", objects=SWIFT), {}),
}
"""By form the expression, a row that has one box, and what is to be set."""


@pytest.mark.parametrize("form", ONE)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_every_form_is_the_same_box(form: str, ending: str, folder: Path) -> None:
    question, record, options = ONE[form]
    (sample,) = load_train(files(write_records(folder / f"d.{ending}", [record]), **options), "grounding")
    assert sample.question == question
    assert sample.boxes == (pytest.approx(DOG),)
    assert sample.image.load().size == (WIDTH, HEIGHT)


def test_what_the_system_says_is_no_expression_and_a_message_may_hold_the_image(folder: Path) -> None:
    shown = [{"type": "image", "image": "0.png"}, {"type": "text", "text": QWEN}]
    system = {"role": "system", "content": "You are a helpful assistant."}
    talk = [system, {"role": "user", "content": shown}, *messages("", '{"bbox_2d": [20, 20, 40, 30]}')[1:]]
    (sample,) = load_train(files(write_records(folder / "d.jsonl", [{"messages": talk}])), "grounding")
    assert (sample.question, sample.boxes) == ("the dog", (DOG,))


OBJECTS = {"ref": ["a dog", "sheep"], "bbox": [[20, 20, 40, 30], [0, 0, 8, 8], [20, 20, 40, 30]]}
FIRST, SECOND = "<box>(250,500),(500,750)</box>", "<box>(0,0),(100,200)</box>"
LABELS = [([20, 20, 40, 30], "a dog"), ([0, 0, 8, 8], "sheep"), ([20, 20, 40, 30], "sheep")]
MANY = {
    "described": messages("<image>Describe it.", "<ref-object><bbox> and <ref-object><bbox><bbox> play."),
    "tagged": messages("Describe it.", f"<ref>a dog</ref>{FIRST}, <ref>sheep</ref>{SECOND}{FIRST}"),
    "json": messages("Find all.", json.dumps([{"bbox_2d": box, "label": label} for box, label in LABELS])),
    "turns": messages(
        *("<image>Where is <ref>a dog</ref>?", "[0.25, 0.5, 0.5, 0.75]"),
        *("And <ref>sheep</ref>?", "[0, 0, 0.1, 0.2] and [0.25, 0.5, 0.5, 0.75]"),
    ),
}


@pytest.mark.parametrize("form", MANY)
def test_each_name_is_a_sample_of_its_own(form: str, folder: Path) -> None:
    record = row(id="a", messages=MANY[form], **({"objects": OBJECTS} if form == "described" else {}))
    found = load_train(files(write_records(folder / "d.jsonl", [record])), "grounding")
    assert [(one.id, one.question) for one in found] == [("a", "a dog"), ("a/2", "sheep")]
    assert [one.boxes for one in found] == [(pytest.approx(DOG),), (pytest.approx(SHEEP), pytest.approx(DOG))]
    record.pop("id")
    found = load_train(files(write_records(folder / "d.jsonl", [record])), "grounding")
    assert [one.id for one in found] == ["d.jsonl:1", "d.jsonl:1/2"]


REFER = [{"raw": "The dog", "sent": "dog", "tokens": ["dog"]}, {"raw": "left one", "sent": "left one"}]


@pytest.mark.parametrize("listed", [{"sentences": REFER}, {"expressions": ["The dog", "left one"]}])
@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_each_expression_of_a_box_is_a_sample(
    listed: dict[str, Any], ending: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As REFER has them, and RefCOCO where its boxes were put beside its expressions."""
    record = {"file_name": "0.png", "bbox": [20, 20, 20, 10], "split": "train", **listed}
    path = write_records(folder / f"refs.{ending}", [record, {**record, "split": "testA"}])
    options: dict[str, Any] = {"boxes": "xywh", "columns": {"image": "file_name", "split": ""}}
    with caplog.at_level("INFO", "vlatrain"):
        found = load_train(files(path, **options), "grounding")
    assert [sample.question for sample in found] == ["The dog", "left one"] * 2
    assert {sample.boxes for sample in found} == {(DOG,)}
    assert [sample.id for sample in found[:2]] == [f"refs.{ending}[0]", f"refs.{ending}[0]/2"]
    assert any(f"each expression in '{next(iter(listed))}' is a sample" in said for said in caplog.messages)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "expected a list of expressions, found []"),
        ("dog", "expected a list of expressions, found dog"),
        ([{"tokens": ["dog"]}], "an expression needs one of raw, sent, text"),
        ([""], "empty question"),
    ],
)
def test_what_is_no_list_of_expressions_is_said(value: Any, said: str, folder: Path) -> None:
    rows = [row(box=[20, 20, 40, 30], sentences=one) for one in (REFER, value)]
    problems = problems_of(files(write_records(folder / "d.jsonl", rows)), "grounding")
    assert [said in problem and "d.jsonl:2: " in problem for problem in problems] == [True]


@pytest.mark.parametrize(
    ("asked", "reply", "expected"),
    [
        ("Find <ref>the dog</ref> and <ref>the cat</ref>.", f"{FIRST}{SECOND}", [("the dog", 1), ("the cat", 1)]),
        ("Find <ref>the dog</ref> and <ref>the cat</ref>.", FIRST, [("Find the dog and the cat.", 1)]),
        ("Find <ref>dogs</ref>.", f"{FIRST}{SECOND}", [("dogs", 2)]),
        ("Find both.", f"{FIRST}{SECOND}", [("Find both.", 2)]),
        ("<ref>the dog</ref> or <ref>the cat</ref>?", f"<ref>a cat</ref>{FIRST}", [("a cat", 1)]),
    ],
)
def test_boxes_without_a_name_are_of_what_is_asked_for(
    asked: str, reply: str, expected: list[tuple[str, int]], folder: Path
) -> None:
    path = write_records(folder / "d.jsonl", [row(messages=messages(asked, reply))])
    assert [(one.question, len(one.boxes)) for one in load_train(files(path), "grounding")] == expected


def test_what_says_nothing_of_places_is_left_out_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    talk = messages(
        *("What is it?", "A dog."),
        *("What is at [0.25, 0.5, 0.5, 0.75]?", "A dog at [0.25, 0.5, 0.5, 0.75]."),
        *("Where is it?", "[0.25, 0.5, 0.5, 0.75]"),
        *("Click it.", "click(start_box='<|box_start|>(246,113)<|box_end|>')"),
    )
    with caplog.at_level("INFO", "vlatrain"):
        (sample,) = load_train(files(write_records(folder / "d.jsonl", [row(messages=talk)])), "grounding")
    assert sample.question == "Where is it?"
    said = "\n".join(caplog.messages)
    assert "d.jsonl: expressions and boxes are those in 'messages'" in said
    assert "d.jsonl:1: a turn without boxes in its reply, or with some in the question, and 2 more: left out" in said
    assert "boxes in shares, read as data.boxes=xyxy_normalised: of the image itself" in said
    (problem,) = problems_of(files(write_records(folder / "d.jsonl", [row(messages=talk[:2])])), "grounding")
    assert "no reply says where something is" in problem


@pytest.mark.parametrize(
    ("talk", "objects", "said"),
    [
        (messages("Where?", "<bbox><bbox>"), SWIFT, "more <bbox> than boxes under 'bbox'"),
        (messages("<ref-object>, <ref-object>?", "<bbox>"), SWIFT, "more <ref-object> than names under 'ref'"),
        (messages("Where?", "<bbox>"), {**SWIFT, "bbox_type": "norm1000"}, "bbox_type is norm1000; it must be real (pixels) or "),
        (messages("Where?", "<bbox>"), "nowhere", "expected an object with 'ref' and 'bbox', found nowhere"),
        (messages("Where?", "<box>(250,500),(500)</box>"), None, "a box has four numbers, found [250.0, 500.0, 500.0]"),
        (messages("Where?", "<box>(250,500),(1500,750)</box>"), None, "a box outside of the image"),
        (messages("Where?", '{"bbox_2d": [20, 20, 40, 30], "label": dog}'), None, "an object with bbox_2d that is no JSON"),
        (messages("Where?", '{"bbox_2d": "here"}'), None, "a box has four numbers, found here"),
        (messages("Where?", "[0.5, 0.5, 0.25, 0.75]"), None, "whose right edge is left of its left one"),
        (messages("Where?"), None, "the last message has no reply"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one_is_said_with_its_line(talk: Any, objects: Any, said: str, folder: Path) -> None:
    good, bad = ONE["ms-swift"][1], row(messages=talk, **({"objects": objects} if objects else {}))
    path = write_records(folder / "d.jsonl", [good, bad])
    problems = problems_of(files(path), "grounding")
    assert any(problem.startswith(f"{path}:2: column 'messages': ") and said in problem for problem in problems)


def test_thousandths_that_are_read_as_pixels_are_suspected(folder: Path) -> None:
    record = row(messages=messages(QWEN, '{"bbox_2d": [250, 500, 500, 750]}'))
    problems = problems_of(files(write_records(folder / "d.jsonl", [record] * 2)), "grounding")
    assert any("data.boxes=xyxy_1000 takes thousandths" in problem for problem in problems)


@pytest.mark.parametrize("size", [(80, 40), (40, 80), (41, 80), (64, 64)])
def test_boxes_of_a_padded_square_are_where_the_image_is_pasted_in_it(size: tuple[int, int]) -> None:
    """As LLaVA's `expand2square` pastes it: the patch of the square is that of the image."""
    image, side = Image.new("L", size), max(size)
    image.paste(255, (8, 12, 24, 30))
    square = Image.new("L", (side, side))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    written = [edge / side for edge in square.getbbox() or ()]
    (found,) = in_shares(Boxes([written], "xyxy_padded"), size)
    assert found == pytest.approx((8 / size[0], 12 / size[1], 24 / size[0], 30 / size[1]))
    rounded = [round(edge, 2) for edge in written]
    assert in_shares(Boxes([rounded], "xyxy_padded"), size)[0] == pytest.approx(found, abs=0.01 * side / min(size))


@pytest.mark.parametrize("reply", [(), ("[0.25, 0.5, 0.5, 0.75]",)])
def test_what_is_asked_needs_no_reply(reply: tuple[str, ...], folder: Path) -> None:
    path = write_records(folder / "d.jsonl", [row(messages=messages(LLAVA, *reply))])
    (sample,) = load_inputs(str(path), files("unused"), TaskConfig("grounding"))
    assert (sample.question, len(sample.boxes)) == ("the dog", len(reply))


def test_a_data_set_of_the_hub_is_read_alike(folder: Path) -> None:
    pytest.importorskip("datasets")
    records = [{**ONE["ms-swift"][1], "image": str(folder / "0.png")}] * 2
    (folder / "set").mkdir()
    write_records(folder / "set" / "train.parquet", records)
    config = DataConfig(name="hub", path=str(folder / "set"), train="train", eval="train")
    first, second = load(config, TaskConfig("grounding"), ["train"])["train"]
    assert (first.question, first.boxes) == ("dog", (DOG,))
    assert second == replace(first, id=second.id, source=second.source)
