"""Which column holds which field; what is missing is told with what was meant, and never with what cannot work."""

from __future__ import annotations

import pytest

from tests.data.writing import files, load_train, problems_of, write_images, write_records


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 3)
    return tmp_path


def write(folder, *records):
    return write_records(folder / "d.jsonl", records)


ABSENT = [
    (
        {"image": "0.png", "Question": "q", "answer": "a"},
        {},
        "vqa",
        "no column 'question'; the columns are image, Question, answer; did you mean data.columns.question=Question?",
    ),
    (
        {"image": "0.png", "question": "q", "multiple_choice_answer": "a"},
        {},
        "vqa",
        "no column 'answer' or 'answers'; the columns are image, question, multiple_choice_answer; "
        "did you mean data.columns.answers=multiple_choice_answer?",
    ),
    (
        {"file_name": "0.png", "caption": "a"},
        {},
        "captioning",
        "no column 'image' or 'images'; the columns are file_name, caption; did you mean data.columns.image=file_name?",
    ),
    (
        {"image": "0.png", "x": "a"},
        {},
        "retrieval",
        "no column 'caption' or 'captions'; the columns are image, x; set data.columns.captions=COLUMN",
    ),
    (
        {"image": "0.png", "caption": "a"},
        {"captions": "captoin"},
        "captioning",
        "no column 'captoin' (data.columns.captions=captoin); the columns are image, caption; "
        "did you mean data.columns.captions=caption?",
    ),
    (
        {"image": "0.png", "question": "q", "answer": "a"},
        {"id": "key"},
        "vqa",
        "no column 'key' (data.columns.id=key); the columns are image, question, answer; set data.columns.id=COLUMN",
    ),
]


@pytest.mark.parametrize(("record", "columns", "task", "message"), ABSENT)
def test_absent_columns(record, columns, task, message, folder):
    train = write(folder, record)
    assert problems_of(files(train, columns=columns), task) == [f"{train}: {message}"]


GUESSES = [  # a row, the task, a field of it, and the column or key that is meant; None: no column will do
    ({"image_id": 7, "question": "q", "answer": "a"}, "vqa", "image", None),
    ({"image_url": "https://x.org/a.png", "caption": "a"}, "captioning", "image", None),
    ({"image_size": "3x4", "img": "0.png", "caption": "a"}, "captioning", "image", "img"),
    ({"image": "0.png", "sentences": [{"tokens": ["a"], "raw": "a"}]}, "captioning", "captions", "sentences.raw"),
    ({"image": "0.png", "text": {"en": "a"}}, "captioning", "captions", "text.en"),
    ({"image": "0.png", "captoin": 3}, "captioning", "captions", "captoin"),
    ({"image": "0.png", "labels": ["a", "b"]}, "classification", "label", None),
]


@pytest.mark.parametrize(("record", "task", "field", "meant"), GUESSES)
def test_only_what_can_work_is_meant(record, task, field, meant, folder):
    (problem,) = problems_of(files(write(folder, record)), task)
    assert (f"did you mean data.columns.{field}=" in problem) == (meant is not None)
    assert meant is None or problem.endswith(f"did you mean data.columns.{field}={meant}?")


def test_many_columns_are_counted(folder):
    (problem,) = problems_of(
        files(write(folder, {"image": "0.png", **{f"c{number}": "x" for number in range(100)}})), "captioning"
    )
    assert "c10 and 89 more; set" in problem


@pytest.mark.parametrize("columns", [{"image": "image.path"}, {"image": "a.b"}])
def test_a_column_with_a_dot_in_its_name(columns, folder):
    record = {"image": {"path": "0.png"}, "a.b": "0.png", "caption": "x"}
    (sample,) = load_train(files(write(folder, record), columns=columns), "captioning")
    assert sample.captions == ("x",)


def test_rows_of_a_mix_have_either_column_of_images(folder):
    rows = [{"image": "0.png", "caption": "x"}, {"images": ["1.png"], "caption": "y"}]
    assert len(load_train(files(write(folder, *rows)), "captioning")) == 2
