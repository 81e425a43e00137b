"""Which rows of which file are which split: one file for all, a column that says it, and each file read once."""

from __future__ import annotations

import pytest

from tests.data.writing import FORMATS, files, load_train, problems_of, write_images, write_records
from vlatrain.config import ColumnsConfig, DataConfig, TaskConfig
from vlatrain.config.data import SplitConfig
from vlatrain.data import load, load_inputs, reading


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 6)
    return tmp_path


def write(folder, values, column="split", kind="jsonl"):
    rows = [
        {"image": f"{number % 6}.png", "question": f"q{number}", "answer": "a", column: value}
        for number, value in enumerate(values)
    ]
    return write_records(folder / f"d.{kind}", rows)


def numbers(found):
    return {split: [int(sample.question[1:]) for sample in samples] for split, samples in found.items()}


def read(config, *splits):
    return numbers(load(config, TaskConfig("vqa"), splits or ["train", "eval"]))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_split_column(kind, folder):
    train = write(folder, ["train", "val", "Train", "test", "dev"], kind=kind)
    assert read(files(train, eval_fraction=0.5)) == {"train": [0, 2], "eval": [1, 4], "test": [3]}
    assert read(files(train), "train") == {"train": [0, 2]}
    assert read(files(train), "eval") == {"eval": [1, 4]}
    assert read(files(train, test=str(train)), "test") == {"test": [3]}
    assert len(load_inputs(str(train), files(train), TaskConfig("vqa"))) == 5


def test_names_of_ones_own(folder, caplog):
    train = write(folder, ["a", "b", "c", "a"], "fold")
    config = files(train, columns={"split": "fold"}, split=SplitConfig(train=["a"], eval=["B"]))
    assert read(config) == {"train": [0, 3], "eval": [1]}
    assert "rows of no split are left out: column 'fold' says c (1); data.split.train=[VALUE] takes them" in caplog.text
    assert problems_of(files(train, columns={"split": "fold"}))[0].startswith(
        f"{train}: column 'fold' says a, b, c, and none of train, training"
    )
    assert problems_of(files(train, columns={"split": "part"})) == [
        f"{train}: no column 'part', which would say the split; the columns are image, question, answer, fold; "
        "data.columns.split=COLUMN names one"
    ]


@pytest.mark.parametrize("values", [["a", "b"], ["train", "train"], [None, None]])
def test_a_column_that_tells_nothing_apart_is_let_be(values, folder, caplog):
    train = write(folder, values)
    assert read(files(train), "train") == {"train": [0, 1]}
    assert not caplog.records


def test_no_column_says_it_where_the_user_says_so(folder):
    train = write(folder, ["train", "val"])
    assert read(files(train, columns={"split": ""}), "train") == {"train": [0, 1]}


def test_a_file_of_another_split_is_taken_whole_if_it_is_of_one(folder, caplog):
    train = write(folder, ["train"] * 3)
    assert read(files(train, eval=str(train))) == {"train": [0, 1, 2], "eval": [0, 1, 2]}
    assert caplog.messages == [f"data.eval={train}: column 'split' says train (3) for all rows: all are taken"]
    mixed = write(folder, ["train", "test"])
    assert problems_of(files(mixed, eval=str(mixed)), "vqa", ["train", "eval"]) == [
        f"data.eval={mixed}: no row is of eval by its column 'split', which says train (1), test (1): set data.split.eval=[VALUE], "
        "or data.columns.split= to take all rows"
    ]


def test_rows_that_are_all_of_one_split_are_built_once(folder):
    train = write(folder, ["train", "train"])
    rows = [line.replace('"a"', '""') for line in train.read_text().splitlines()]
    train.write_text("\n".join(rows))
    found = problems_of(files(train, eval=str(train)), "vqa", ["train", "eval"])
    assert found == [f"{train}:{line}: no answer (column 'answer')" for line in (1, 2)]


def test_a_file_is_read_once_and_its_faults_are_told_once(folder, monkeypatch):
    opened = []
    read_table = reading.read_table
    monkeypatch.setattr(reading, "read_table", lambda path, *more: opened.append(path) or read_table(path, *more))
    train = write(folder, ["train", "", "val"], "answer")
    assert problems_of(files(train, eval=str(train), test=str(train)), "vqa", ["train", "eval", "test"]) == [
        f"{train}:2: no answer (column 'answer')"
    ]
    assert opened == [str(train)]


def test_images_below_the_folder_that_is_named(folder):
    config = DataConfig(name="files", train=str(folder), columns=ColumnsConfig(), eval_fraction=0.0)
    for name in ("cat", "dog"):
        write_images(folder / name, 1)
    assert [sample.image.path for sample in load_train(config, "classification")] == [
        str(folder / "cat" / "0.png"),
        str(folder / "dog" / "0.png"),
    ]
