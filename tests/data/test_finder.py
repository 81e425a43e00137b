"""Images by id, by a name without ending, and which of several files is the image."""

from __future__ import annotations

import pytest

from vlatrain.data.finder import Finder


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("name", "identifier", "subset"),
    [
        ("12.jpg", 12, ""),
        ("12.jpg", "12", "val2014"),
        ("n161313.jpg", "n161313", ""),
        ("000000000012.jpg", 12, "val2017"),
        ("COCO_val2014_000000000012.jpg", 12, "val2014"),
        ("COCO_train2014_000000000012.jpg", "12", ""),
        ("train2014/COCO_train2014_000000000012.jpg", 12, ""),
        ("val2014/COCO_val2014_000000000012.jpg", 12, "val2014"),
        ("COCO_test2015_000000000012.jpg", 12, "test-dev2015"),
    ],
)
def test_by_id(name, identifier, subset, tmp_path):
    touch(tmp_path, name, "13.jpg", "12.txt")
    assert Finder(tmp_path).by_id(identifier, subset) == (name, True)


def test_what_is_not_there_has_its_name_in_coco(tmp_path):
    assert Finder(tmp_path).by_id(12, "val2014") == ("COCO_val2014_000000000012.jpg", False)
    assert Finder(tmp_path / "gone").by_id("a1") == ("a1.jpg", False)


def test_the_image_of_a_name_is_no_mask(tmp_path):
    touch(tmp_path, "a/7.png", "a/7.jpg", "a/8.png", "a/8.txt")
    assert Finder(tmp_path).named("a/7") == "a/7.jpg"
    assert Finder(tmp_path).named("a/8") == "a/8.png"
    assert Finder(tmp_path).named("a/9") is None
    assert [Finder(tmp_path).has(path) for path in ("a/7.jpg", "a/7.png", "a/9.png")] == [True, True, False]
