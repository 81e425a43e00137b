"""Boxes in every form and layout come out the same; what is wrong with one is said with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.writing import files, load_train, problems_of, write_records
from vlatrain.config import TaskConfig
from vlatrain.data import load
from vlatrain.data.boxes import FORMS, TURNS, Boxes, in_shares, read_boxes
from vlatrain.data.images import FilePicture, upright_size

WIDTH, HEIGHT = 80, 40
BOX = (0.25, 0.5, 0.5, 0.75)  # 20, 20, 40, 30 pixels
WRITTEN = {
    "xyxy": [20, 20, 40, 30],
    "xywh": [20, 20, 20, 10],
    "xyxy_normalised": [0.25, 0.5, 0.5, 0.75],
    "xywh_normalised": [0.25, 0.5, 0.25, 0.25],
    "cxcywh_normalised": [0.375, 0.625, 0.25, 0.25],
    "xyxy_padded": [0.25, 0.5, 0.5, 0.625],
    "xyxy_1000": [250, 500, 500, 750],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 9, 9)).save(tmp_path / f"{number}.png")
    return tmp_path


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "0.png", "question": "the cell", "box": WRITTEN["xyxy"], **changes}


def read(path: Path, **options: Any) -> list[Any]:
    return load_train(files(path, **options), "grounding")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_box(form: str, folder: Path) -> None:
    (sample,) = read(write_records(folder / "d.jsonl", [row(box=WRITTEN[form])]), boxes=form)
    assert sample.boxes == (pytest.approx(BOX),)
    assert sample.question == "the cell"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_several_boxes_in_every_format(ending: str, folder: Path) -> None:
    record = {"image": "0.png", "expression": "cells", "boxes": [[20, 20, 40, 30], [0, 0, 80, 40]]}
    (sample,) = read(write_records(folder / f"d.{ending}", [record]))
    assert sample.boxes == (BOX, (0.0, 0.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([20, 20, 90, 30], "a box outside of the image, which is 80 x 40 pixels: [20.0, 20.0, 90.0, 30.0]"),
        ([-5, 20, 40, 30], "a box outside of the image"),
        ([-0.9, 20, -0.1, 30], "a box outside of the image"),
        ([20, 20, 20, 30], "an empty box"),
        ([40, 20, 20, 30], "whose right edge is left of its left one"),
        ([20, 20, 20, 10], "these look like corner and sides: data.boxes=xywh"),
        ([20, 20, 40], "a box has four numbers, found [20, 20, 40]"),
        (["a", 20, 40, 30], "a box has four numbers"),
        ({"x": 1}, "expected a box of four numbers, or a list of such, found an object"),
        (float("nan"), "expected a box of four numbers"),
    ],
)
def test_what_is_wrong_with_a_box_is_said_with_its_line(box: Any, said: str, folder: Path) -> None:
    path = write_records(folder / "d.jsonl", [row(), row(image="1.png", box=box)])
    (problem,) = problems_of(files(path), "grounding")
    assert problem.startswith(f"{path}:2: column 'box': ")
    assert said in problem


def test_a_pixel_beyond_the_edge_is_cut_off() -> None:
    assert in_shares(read_boxes([0, 0, 81, 40], "xyxy"), (WIDTH, HEIGHT)) == ((0.0, 0.0, 1.0, 1.0),)


@pytest.mark.parametrize(
    ("box", "form", "said"),
    [
        ([0.2, 0.2, 0.5, 0.5], "xyxy", "all 2 boxes lie in 0..1 and are read as pixels: data.boxes=xyxy_normalised"),
        ([250, 500, 500, 750], "xyxy", "all lie in 0..1000: data.boxes=xyxy_1000 takes thousandths"),
        ([20, 20, 40, 30], "xyxy_normalised", "numbers up to 40 and are read as shares of the image: data.boxes=xyxy"),
    ],
)
def test_another_form_is_suspected_by_all_boxes_together(box: list[float], form: str, said: str, folder: Path) -> None:
    path = write_records(folder / "d.jsonl", [row(box=box), row(image="1.png", box=box)])
    assert any(said in problem for problem in problems_of(files(path, boxes=form), "grounding"))


def test_rows_of_boxes_are_gathered_by_image_and_class(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """BCCD's columns, its edges in another order."""
    lines = ["filename,cell_type,xmin,xmax,ymin,ymax", "0.png,RBC,20,40,20,30", "0.png,WBC,0,80,0,40"]
    (folder / "boxes.csv").write_text("\n".join([*lines, "0.png,RBC,0,8,0,4", "1.png,RBC,20,40,20,30", ""]))
    with caplog.at_level("INFO", "vlatrain"):
        found = read(folder / "boxes.csv")
    assert [(sample.id, sample.question, len(sample.boxes)) for sample in found] == [
        ("boxes.csv:2", "RBC", 2), ("boxes.csv:3", "WBC", 1), ("boxes.csv:5", "RBC", 1),
    ]  # fmt: skip
    assert found[0].boxes == (BOX, pytest.approx((0, 0, 0.1, 0.1)))
    assert caplog.messages[0].endswith("4 rows of boxes as 3 of an image and 'cell_type' each")
    (folder / "boxes.csv").write_text("\n".join([*lines, "0.png,RBC,0,8,0,x"]))
    (problem,) = problems_of(files(folder / "boxes.csv"), "grounding")
    assert problem.startswith(f"{folder / 'boxes.csv'}:2: column 'boxes': a box has four numbers")


def test_cocos_instances(folder: Path) -> None:
    value = {
        "images": [{"id": 7, "file_name": "0.png", "width": WIDTH, "height": HEIGHT}, {"id": 8, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dot"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [20, 20, 20, 10]},
            {"image_id": 8, "category_id": 2, "bbox": [0, 0, 8, 4]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 80, 40]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 1},
        ],
    }
    (folder / "c.json").write_text(json.dumps(value))
    cells, dots = read(folder / "c.json")
    assert (cells.question, cells.boxes) == ("cell", (BOX, (0.0, 0.0, 1.0, 1.0)))
    assert (dots.question, len(dots.boxes)) == ("dot", 1)


def test_expressions_as_mdetr_has_them(folder: Path) -> None:
    """An image for each expression, which is its caption."""
    value = {
        "images": [{"id": n, "file_name": "0.png", "caption": text} for n, text in enumerate(["left cell", "the dot"])],
        "annotations": [{"image_id": n, "category_id": 0, "bbox": [20, 20, 20, 10]} for n in range(2)],
    }
    (folder / "finetune_refcoco_train.json").write_text(json.dumps(value))
    found = read(folder / "finetune_refcoco_train.json")
    assert [(sample.question, sample.boxes) for sample in found] == [("left cell", (BOX,)), ("the dot", (BOX,))]


VOC = """<annotation><filename>{name}.png</filename><size><width>80</width><height>40</height></size>
<object><name>cell</name><bndbox><xmin>20</xmin><ymin>20</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
<object><name>cell</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>80</xmax><ymax>40</ymax></bndbox></object>
<object><name>dot</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>{bottom}</ymax></bndbox></object></annotation>"""


def test_pascal_voc(folder: Path) -> None:
    root = folder / "voc"
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for name, split in (("a", "train"), ("b", "val")):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(VOC.format(name=name, bottom=9))
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{name}\n")
    found = load(files(root), TaskConfig("grounding"), ["train", "eval"])
    assert [(one.question, len(one.boxes)) for one in found["train"]] == [("cell", 2), ("dot", 1)]
    assert found["train"][0].boxes[0] == BOX
    assert [one.id for one in found["eval"]] == ["voc/Annotations/b.xml#cell", "voc/Annotations/b.xml#dot"]
    (root / "Annotations" / "a.xml").write_text(VOC.format(name="a", bottom=99))
    (problem,) = problems_of(files(root), "grounding")
    assert problem.startswith(f"{root}/Annotations/a.xml#dot: column 'boxes': a box outside of the image")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_lie_in_the_upright_image_and_turn_with_one_that_is_said_to_lie(orientation: int, tmp_path: Path) -> None:
    """The box of a white patch is that of the patch as it is loaded."""
    stored = Image.new("RGB", (WIDTH, HEIGHT))
    stored.paste((255, 255, 255), (20, 20, 40, 30))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    picture = FilePicture(tmp_path / "a.jpg")
    upright = picture.load()
    assert upright_size(picture) == upright.size
    left, top, right, bottom = upright.convert("L").point(lambda value: 255 * (value > 128)).getbbox()
    seen = (left, top, right, bottom)
    found = in_shares(read_boxes(list(seen), "xyxy"), upright.size, orientation)
    assert found == (
        pytest.approx((left / upright.width, top / upright.height, right / upright.width, bottom / upright.height)),
    )
    if orientation in TURNS:
        lying = in_shares(Boxes([(20, 20, 40, 30)], "xyxy", (WIDTH, HEIGHT)), upright.size, orientation)
        assert lying == (pytest.approx(found[0], abs=0.03),)


def test_other_tasks_pass_over_boxes(folder: Path) -> None:
    (sample,) = load_train(files(write_records(folder / "d.jsonl", [row(answer="yes")])), "vqa")
    assert sample.boxes == ()
