"""Every format gives the same samples; every bad line is reported with its number."""

from __future__ import annotations

import base64
import codecs
import csv
import json
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.writing import FORMATS, files, load_train, problems_of, write_images, write_records

# Text that survives a cell: not blank, and not what reads as a list. Controls are left to JSON's own tests.
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
TEXT = WORDS.map(str.strip).filter(lambda text: text and not text.startswith("[")) | st.sampled_from(
    ['say "hi"', "a,b;c\td", "two\nlines", "naïve 猫 🐈", "'", "3", "3.0", "true", "null", "x\u2028y"]
)


@st.composite
def vqa_records(draw):
    several = draw(st.booleans())
    records = []
    for index in range(draw(st.integers(1, 5))):
        record = {"id": f"s{index}", "image": f"{draw(st.integers(0, 2))}.png", "question": draw(TEXT)}
        if several:
            answers = draw(st.lists(TEXT, min_size=1, max_size=3))
            record |= {"answers": answers, "weights": [index + 1.5 for index in range(len(answers))]}
        else:
            record |= {"answer": draw(TEXT)}
        records.append(record)
    return records


def plain(samples):
    """Everything of samples but where they came from."""
    return [(s.id, s.image, s.question, s.answers, s.weights, s.captions) for s in samples]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(vqa_records())
def test_formats_agree_on_questions(records):
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 3)
        loaded = [plain(load_train(files(write_records(Path(folder) / f"d.{end}", records)))) for end in FORMATS]
    assert all(samples == loaded[0] for samples in loaded)
    expected = [(r["id"], r["question"], tuple(r.get("answers", [r.get("answer")]))) for r in records]
    assert [(sample[0], sample[2], sample[3]) for sample in loaded[0]] == expected


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_formats_agree_on_captions_grouped_by_image(rows):
    records = [{"image": f"{image}.png", "captions": captions} for image, captions in rows]
    expected: dict[str, list[str]] = {}
    for record in records:
        expected.setdefault(record["image"], []).extend(record["captions"])
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 3)
        for end in FORMATS:
            samples = load_train(files(write_records(Path(folder) / f"d.{end}", records)), "captioning")
            assert {Path(s.image.path).name: list(s.captions) for s in samples} == expected


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 3)
    return tmp_path


def row(image=0, question="q?", answer="a"):
    return json.dumps({"image": f"{image}.png", "question": question, "answer": answer}, ensure_ascii=False)


HEADER = "image,question,answer"
GOOD = {  # name of the file -> its bytes -> (question, answers, place) of each sample; a number: a line
    "blank lines.jsonl": (f"\n{row()}\n\n  \n{row(1)}", [("q?", ("a",), 2), ("q?", ("a",), 5)]),
    "crlf.jsonl": (f"{row()}\r\n{row(1)}\r\n", [("q?", ("a",), 1), ("q?", ("a",), 2)]),
    "bom.jsonl": (codecs.BOM_UTF8 + row(0, "é").encode(), [("é", ("a",), 1)]),
    "line separator.jsonl": (row(0, "a\u2028b") + "\n" + row(1), [("a\u2028b", ("a",), 1), ("q?", ("a",), 2)]),
    "utf16.jsonl": (row(0, "猫").encode("utf-16"), [("猫", ("a",), 1)]),
    "lines.json": (f"{row()}\n\n{row(1)}\n", [("q?", ("a",), 1), ("q?", ("a",), 3)]),
    "list.json": (f"[\n{row()},\n\n  {row(1)}\n]\n", [("q?", ("a",), "[0]"), ("q?", ("a",), "[1]")]),
    "one line.json": (f"[{row()}, {row(1)}, {row(2)}]", [("q?", ("a",), f"[{number}]") for number in range(3)]),
    "data.json": (
        f'{{"version": 1,\n"data": [{row()},\n{row(1)}]}}',
        [("q?", ("a",), ":data[0]"), ("q?", ("a",), ":data[1]")],
    ),
    "annotations.json": (f'{{"data": [], "annotations": [\n{row()}\n]}}', [("q?", ("a",), ":annotations[0]")]),
    "bom.csv": (codecs.BOM_UTF8 + f"{HEADER}\r\n0.png,é,a\r\n".encode(), [("é", ("a",), 2)]),
    "several lines.csv": (
        f'{HEADER}\n0.png,"one\ntwo",a\n\n,,\n1.png,q?,"say ""x"""\n',
        [("one\ntwo", ("a",), 2), ("q?", ('say "x"',), 6)],
    ),
    "semicolons.csv": ("image;question;answer\n0.png;q, r?;1,5\n", [("q, r?", ("1,5",), 2)]),
    "more columns.csv": ("n, image ,question,answer,,\n7,0.png,q?,a,,,\n", [("q?", ("a",), 2)]),
    "json list.csv": (f'{HEADER}\n0.png,q?,"[""a"", ""b""]"\n', [("q?", ("a", "b"), 2)]),
    "python list.csv": (f"{HEADER}\n0.png,q?,\"['a', 'b']\"\n", [("q?", ("a", "b"), 2)]),
    "bracket.csv": (f"{HEADER}\n0.png,q?,[unclear]\n", [("q?", ("[unclear]",), 2)]),
    "utf16.tsv": ("image\tquestion\tanswer\r\n0.png\tq, r?\ta\r\n".encode("utf-16"), [("q, r?", ("a",), 2)]),
    "capital.JSONL": (row(), [("q?", ("a",), 1)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_read(name, folder):
    content, expected = GOOD[name]
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    samples = load_train(files(folder / name))
    places = [place if isinstance(place, str) else f":{place}" for _, _, place in expected]
    assert [(s.question, s.answers) for s in samples] == [(question, answers) for question, answers, _ in expected]
    assert [s.id for s in samples] == [f"{name}{place}" for place in places]
    assert [s.source for s in samples] == [f"{folder / name}{place}" for place in places]


BAD = {  # name of the file -> its bytes -> what is reported after the path
    "a.jsonl": (
        f'{row()}\n{{"image": }}\n{row(1)}\n{{"a": 1',
        [":2: not JSON: Expecting value at column 11", ":4: not JSON: Expecting ',' delimiter at column 8"],
    ),
    "b.jsonl": (
        f'{row()}\n[1]\n"x"',
        [":2: expected an object {...}, found list", ":3: expected an object {...}, found str"],
    ),
    "c.jsonl": (f"[\n{row()}\n]", [": starts with '[': a JSON list; name the file .json"]),
    "d.jsonl": (
        row().encode() + b"\n" + row(0, "caf\xe9").encode("latin-1") + b"\n",
        [":2: not UTF-8 (at character 36): save the file as UTF-8"],
    ),
    "e.jsonl": ("\n\n", [": no samples in this file"]),
    "digits.jsonl": (
        f'{row()}\n{{"image": "a.png", "question": "?", "answer": {"1" * 5001}}}',
        [":2: not JSON: a number of 5,001 digits at column 47"],
    ),
    "digits.json": (f'[{row()},\n{{"answer": {"7" * 5001}}}]', [":2: not JSON: a number of 5,001 digits at column 12"]),
    "deep.jsonl": (f"{row()}\n" + "[" * 100_000, [":2: not JSON that can be read: nested too deep"]),
    "a.json": (f"[\n{row()},\n{row()}\n{row()}]", [":4: not JSON: Expecting ',' delimiter at column 1"]),
    "b.json": (f"[\n{row()}\n] x", [":3: not JSON: Extra data at column 3"]),
    "c.json": (f"[{row()},\n3]", ["[1]: expected an object {...}, found int"]),
    "d.json": (
        '{"info": 1,\n"rows": []}',
        [
            ": an object without a list of samples; the keys looked for are annotations, "
            "data, samples, questions, images, those there are info, rows"
        ],
    ),
    "deep.json": ("[" * 100_000, [": not JSON that can be read: nested too deep"]),
    "i.json": ('{"data" [1]}', [":1: not JSON: Expecting ':' delimiter at column 9"]),
    "e.json": ("3", [": not JSON: it begins with neither { nor ["]),
    "f.json": ('{"data": [\n{"a": 1}\n', [":3: not JSON: Expecting ',' delimiter at column 1"]),
    "g.json": ("[]", [": no samples in this file"]),
    "h.json": ("", [": no samples in this file"]),
    "a.csv": (
        f"{HEADER}\n0.png,q?\n0.png,q?,a\n0.png,q?,a,b\n",
        [":2: 2 cells, where the header has 3", ":4: 4 cells, where the header has 3"],
    ),
    "b.csv": (
        f'{HEADER}\n0.png,q?,a\n0.png,"q?,a\n0.png,q?,a\n',
        [":3: not CSV: a quote that opens here is never closed"],
    ),
    "c.csv": (
        f'{HEADER}\n0.png,"q"?,a\n0.png,q?,a\n',
        [":2: not CSV: ',' expected after '\"'; a cell with quotes or line breaks must be quoted, its quotes doubled"],
    ),
    "d.csv": ("image,question,answer,answer\n0.png,q?,a,b\n", [":1: column 'answer' occurs 2 times"]),
    "e.csv": (HEADER, [": no samples in this file"]),
    "f.csv": (
        f'{HEADER}\n0.png,q?,"[""a"", b]"\n',
        [":2: column 'answer': looks like a list and is not one that can be read (write JSON): [\"a\", b]"],
    ),
    "a.parquet": (b"PAR1 not really", [": not Parquet that can be read: "]),
    "a.arrow": (b"ARROW1 not really", [": not Arrow that can be read: "]),
    "a.txt": (
        "0.png a card",
        [
            ":1: not one of the tables that a text file may hold (a header image,caption or image| comment_number| comment, or "
            "lines of NAME.jpg#0, a tab and a caption): 0.png a card; name a table of other columns .csv or .tsv"
        ],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name, folder):
    content, expected = BAD[name]
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    found = [problem.partition(name)[2] for problem in problems_of(files(folder / name))]
    assert len(found) == len(expected)
    assert all(problem.startswith(message) for problem, message in zip(found, expected, strict=True)), found


CAPTIONS = {  # name of the file -> its content -> (image, captions) of each sample
    "captions.txt": (
        'image,caption\n0.png,A card , red .\n0.png,"A ""red"" card, too ."\n\n1.png,[a card]\n',
        [("0.png", ("A card , red .", 'A "red" card, too .')), ("1.png", ("[a card]",))],
    ),
    "tabs.txt": ("image\tcaptions\n0.png\tone, two\n", [("0.png", ("one, two",))]),
    "results.csv": (
        "image_name| comment_number| comment\n0.png| 0| A card , red .\n0.png| 4   One card .\n1.png| 0| x | y\n",
        [("0.png", ("A card , red .", "One card .")), ("1.png", ("x | y",))],
    ),
    "results.txt": ("image_name| comment_number| comment\n0.png| 0| A card\n", [("0.png", ("A card",))]),
    "Flickr8k.token.txt": ("0.png#0\tA card .\n0.png#1\tOne card .\n", [("0.png", ("A card .", "One card ."))]),
    "results.token": ("0.png#0\tA card .\n", [("0.png", ("A card .",))]),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_in_text_files(name, folder, caplog):
    content, expected = CAPTIONS[name]
    (folder / name).write_text(content)
    with caplog.at_level("INFO", "vlatrain"):
        found = load_train(files(folder / name), "captioning")
    assert [(Path(sample.image.path).name, sample.captions) for sample in found] == expected
    assert caplog.messages[0].startswith(f"{folder / name}: Flickr")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("captions.txt", "0.png A card", "no ',' after the image"),
        ("results.csv", "0.png, 3, A card", "not image| comment_number| comment"),
        ("results.token", "0.png A card", "not NAME.jpg#0, a tab and a caption"),
    ],
)
def test_a_line_of_another_form_is_named(name, line, message, folder):
    (folder / name).write_text(f"{CAPTIONS[name][0].strip()}\n{line}\n")
    number = len(CAPTIONS[name][0].splitlines()) + 1
    assert problems_of(files(folder / name), "captioning") == [f"{folder / name}:{number}: {message}"]


def test_images_in_cells_of_any_length(folder):
    data = (folder / "1.png").read_bytes()
    encoded = base64.b64encode(data + bytes(120_000)).decode()  # a PNG may have more behind its end
    assert len(encoded) > csv.field_size_limit()
    (folder / "d.tsv").write_text(f"image\tquestion\tanswer\n{encoded}\tq\ta\n")
    before = csv.field_size_limit()
    (sample,) = load_train(files(folder / "d.tsv"))
    assert sample.image.load().getpixel((0, 0)) == (1, 0, 9)
    assert csv.field_size_limit() == before


def test_missing_file_and_folder(folder):
    write_records(folder / "train.jsonl", [{"image": "0.png"}])
    assert problems_of(files(folder / "trian.jsonl")) == [
        f"data.train={folder}/trian.jsonl: no such file; the data files in that folder are train.jsonl; did you mean train.jsonl?"
    ]
    assert problems_of(files("nowhere/a.csv")) == ["data.train=nowhere/a.csv: no such file (nor a folder nowhere)"]


def test_parquet_without_pyarrow(folder, monkeypatch):
    (folder / "d.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    expected = f"{folder}/d.parquet: reading Parquet and Arrow needs pyarrow: pip install pyarrow"
    assert problems_of(files(folder / "d.parquet")) == [expected]


def test_coco_captions_name_images_by_id(folder):
    coco = {
        "images": [{"id": 7, "file_name": "0.png"}, {"id": 8, "file_name": "1.png"}],
        "annotations": [
            {"id": 1, "image_id": 8, "caption": "x"},
            {"id": 2, "image_id": 7, "caption": "y"},
            {"id": 3, "image_id": 8, "caption": "z"},
        ],
    }
    (folder / "coco.json").write_text(json.dumps(coco))
    samples = load_train(files(folder / "coco.json"), "captioning")
    assert [(s.id, Path(s.image.path).name, s.captions) for s in samples] == [
        ("1", "1.png", ("x", "z")),
        ("2", "0.png", ("y",)),
    ]


def test_parquet_with_the_images_in_it(folder):
    encoded = [(folder / f"{index}.png").read_bytes() for index in range(2)]
    records = [
        {"image": {"bytes": data, "path": None}, "question": "q?", "answer": index}
        for index, data in enumerate(encoded)
    ]
    samples = load_train(files(write_records(folder / "d.parquet", records)))
    assert [s.answers for s in samples] == [("0",), ("1",)]
    assert [s.image.load().getpixel((0, 0)) for s in samples] == [(0, 0, 9), (1, 0, 9)]
    assert [s.id for s in samples] == ["d.parquet[0]", "d.parquet[1]"]
    write_records(folder / "raw.parquet", [{"image": encoded[0], "question": "q?", "answer": "a"}])
    assert load_train(files(folder / "raw.parquet"))[0].image == samples[0].image
