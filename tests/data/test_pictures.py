"""What a cell with an image may hold, and what is said of what is none."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from PIL import Image

from tests.data.writing import files, load_train, problems_of, write_images, write_records
from vlatrain.data.cells import CellError
from vlatrain.data.pictures import Pictures, SeveralImagesError, cells


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 3)
    (tmp_path / "images").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "images" / "0.png")
    return tmp_path


def encoded(folder):
    return base64.b64encode((folder / "images" / "0.png").read_bytes()).decode()


GOOD = {
    "a path": lambda folder: "images/0.png",
    "with blanks": lambda folder: " images/0.png\n",
    "of Windows": lambda folder: "images\\0.png",
    "without ending": lambda folder: "images/0",
    "a file: URI": lambda folder: (folder / "images" / "0.png").as_uri(),
    "base64 text": encoded,
    "base64 text in lines": lambda folder: "\n".join(encoded(folder)[at : at + 60] for at in range(0, 999, 60)),
    "base64 text without its padding": lambda folder: encoded(folder).rstrip("="),
    "base64 text for URLs": lambda folder: encoded(folder).translate(str.maketrans("+/", "-_")),
    "a data: URI": lambda folder: f"data:image/png;base64,{encoded(folder)}",
    "a quoted data: URI": lambda folder: f"data:image/png;base64,{quote(encoded(folder))}",
    "an unencoded data: URI": lambda folder: "data:image/png," + quote((folder / "images" / "0.png").read_bytes()),
    "bytes": lambda folder: (folder / "images" / "0.png").read_bytes(),
    "an object": lambda folder: {"bytes": (folder / "images" / "0.png").read_bytes(), "path": "x.png"},
    "an object with a path": lambda folder: {"bytes": None, "path": "images/0.png"},
    "an image": lambda folder: Image.open(folder / "images" / "0.png"),
    "a list of one": lambda folder: ["images/0.png"],
    "a list of one object": lambda folder: [{"bytes": None, "path": "images/0.png"}],
    "twice the same": lambda folder: ["images/0.png", "images/0.png"],
}


@pytest.mark.parametrize("form", GOOD)
def test_what_is_an_image(form, folder):
    picture = Pictures(str(folder)).one(cells(GOOD[form](folder)), "t.jsonl:1")
    assert picture.load().getpixel((0, 0)) == (0, 0, 9)


def test_a_name_with_a_backslash_is_a_name(folder):
    (folder / "images" / "0.png").rename(folder / "images\\0.png")
    assert Pictures(str(folder)).one(["images\\0.png"], "t.jsonl:1").path == f"{folder}/images\\0.png"


@pytest.mark.parametrize("nothing", [None, "", " ", [], [None], float("nan"), {"bytes": None, "path": None}])
def test_what_is_none(nothing):
    assert cells(nothing) == []


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (3, "expected an image's path, found int"),
        ({"a": 1}, "expected an image's path, found an object"),
        (b"", "empty image"),
        ("https://x.org/a.png", "'https://x.org/a.png' is a URL, and images are read from disk: download them first"),
        ("data:image/png", "a data: URI without a comma: data:image/png"),
        ("data:image/png;base64,%%%", "base64 text '%%%...' that cannot be decoded"),
    ],
)
def test_what_is_no_image(cell, message):
    with pytest.raises(CellError) as caught:
        Pictures("").one(cells(cell), "t.jsonl:1")
    assert str(caught.value) == message


def test_several_images():
    with pytest.raises(SeveralImagesError):
        Pictures("").one(cells(["a.png", "b.png"]), "t.jsonl:1")
    assert cells('["a.png"]', delimited=True) == ["a.png"]
    assert cells('["a.png"]') == ['["a.png"]']


def test_broken_base64_is_a_short_message(folder):
    text = base64.b64encode(bytes(range(256)) * 90).decode()
    rows = [{"image": image, "question": "q", "answer": "a"} for image in (encoded(folder), text, text[:3001])]
    rows += [{**rows[0], "image": "no path " * 5000}]
    train = write_records(folder / "t.jsonl", rows)
    found = problems_of(files(train))
    assert found[0] == (
        f"{train}:2: not an image (no format that can be read): base64 text 'AAECAwQFBgcICQoLDA0ODxAR...'"
    )
    assert found[1].startswith(f"{train}:3: not an image")
    assert found[2].startswith(f"{train}:4: not a path, which is shorter: {folder}/no path no path")
    assert max(map(len, found)) < 500


def test_pictures_of_one_path_are_one(folder):
    rows = [{"image": image, "question": "q", "answer": "a"} for image in ("images/0.png", "images\\0.png", "images/0")]
    first, *more = load_train(files(write_records(folder / "t.jsonl", rows)))
    assert all(sample.image is first.image for sample in more)
