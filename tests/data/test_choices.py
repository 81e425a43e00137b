"""Questions with options: read from rows, made for built-in scenes, and shown in another order each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.data.writing import files, write_images, write_records
from vlatrain.config import TaskConfig, UserError
from vlatrain.config.data import DataConfig
from vlatrain.config.spec import TaskSpec
from vlatrain.config.wording import Wording, problems
from vlatrain.data import load, load_inputs
from vlatrain.data.choices import Shuffled, asked, lacking, plain, reordered, without_options
from vlatrain.data.sample import fingerprint

SHOWN = "{hint}: {question} {options}"
ROW = {"image": "0.png", "question": "which?", "hint": "look", "options": ["red", "blue", "green"], "answer": "blue"}


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 3)
    return tmp_path


def read(folder, rows, prompt="", answers="generate", **columns):
    path = write_records(folder / "d.jsonl", [{**ROW, **row} for row in rows])
    task = TaskConfig("vqa", prompt=prompt, answers=answers)
    return load(files(path, columns=columns, eval_fraction=0.0), task, ["train"])["train"]


@pytest.mark.parametrize(
    ("prompt", "answers", "row", "question"),
    [
        ("", "options", {}, "which?"),
        ("{question} Options: {options}", "options", {}, "which? Options: red, blue, green"),
        (SHOWN, "letter", {}, "look: which? A. red B. blue C. green"),
        (SHOWN, "letter", {"answer": "B"}, "look: which? A. red B. blue C. green"),
        ("{question} {{{hint}}}", "generate", {"hint": 3}, "which? {3}"),
        ("{hint}", "generate", {"question": None}, "look"),
        (SHOWN, "generate", {"options": []}, "look: which?"),
    ],
)
def test_rows_are_worded_as_the_prompt_says(prompt, answers, row, question, folder):
    (found,) = read(folder, [row], prompt, answers)
    assert (found.question, found.answers) == (question, ("blue",))
    listed = answers != "generate" or ("{options}" in prompt and not row)
    assert found.options == (("red", "blue", "green") if listed else ())


def test_options_in_other_columns(folder):
    (found,) = read(folder, [{"picks": ["x", "blue"]}], answers="options", options="picks")
    assert found.options == ("x", "blue")
    letters = {"options": None, "A": "red", "B": "blue", "C": None, "answer": "B"}
    path = write_records(folder / "l.jsonl", [{k: v for k, v in {**ROW, **letters}.items() if k != "options"}])
    task = TaskConfig("vqa", answers="options")
    (found,) = load(files(path, eval_fraction=0.0), task, ["train"])["train"]
    assert (found.options, found.answers) == (("red", "blue"), ("blue",))
    (row,) = load_inputs(str(path), files(path), task)
    assert row.options == ("red", "blue")


@pytest.mark.parametrize(
    ("prompt", "answers", "row", "question", "lacks"),
    [
        ("", "generate", {}, "which?", []),
        ("", "options", {"options": []}, "", ["options"]),
        (SHOWN, "letter", {}, "look: which? A. red B. blue C. green", []),
        ("{hint} {size} {question}", "generate", {"size": 2.0}, "look 2 which?", []),
        ("{hint} {size} {question}", "generate", {}, "", ["size"]),
        ("{hint} {options}", "generate", {"options": None}, "", ["options"]),
    ],
)
def test_rows_that_are_read_as_they_are_can_be_worded_later(prompt, answers, row, question, lacks, folder):
    """As a router does, which must know the question before it knows who is to word it."""
    path = write_records(folder / "d.jsonl", [{**ROW, **row}])
    unworded = TaskSpec(fields=["question"], optional=["options"])
    (sample,) = load_inputs(str(path), files(path), TaskConfig("vqa", spec=unworded))
    wording = Wording(prompt, answers)
    assert lacking(sample, wording) == lacks
    if question:
        assert asked(sample.question, sample.options, wording, dict(sample.extra)) == question


@pytest.mark.parametrize(
    ("row", "prompt", "told"),
    [
        ({"options": ["red"]}, "", "column 'options': 1 options, and there is something to choose among two or more"),
        ({"options": ["red", "blue", "red"]}, "", "column 'options': an option is there twice"),
        ({"answer": "black"}, "", "column 'options': the answer 'black' is none of the options"),
        ({"options": [f"o{n}" for n in range(27)], "answer": "o3"}, "", "27 options, and there are letters for 26"),
        ({}, "{hnit} {options}", "no column 'hnit' (task.prompt); the columns are"),
        ({}, "{hnit} {options}", "did you mean {hint}?"),
    ],
)
def test_what_is_wrong_with_options(row, prompt, told, folder):
    with pytest.raises(UserError) as caught:
        read(folder, [row], prompt, "options")
    assert told in "\n".join(caught.value.problems)


def test_options_that_are_not_there(folder):
    path = write_records(folder / "d.jsonl", [{"image": "0.png", "question": "q", "answer": "a"}])
    with pytest.raises(UserError) as caught:
        load(files(path), TaskConfig("vqa", answers="options"), ["train"])
    assert "of options (task.answers=options); the columns are" in "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("prompt", "answers", "told"),
    [
        ("{question}", "generate", ""),
        ("{question", "generate", "expected '}' before end of string"),
        ("{question!r}", "generate", "in braces stands the name of a column and nothing else"),
        ("{}", "generate", "in braces stands the name of a column and nothing else"),
        ("what?", "generate", "has no column in braces"),
        ("{question}", "letter", "task.answers=letter: the model must see the letters of the options: set "
         "task.prompt='{question} {options}'"),
    ],
)  # fmt: skip
def test_prompts_are_checked_before_any_data(prompt: str, answers: str, told: str) -> None:
    found = problems(prompt, answers)
    assert bool(found) == bool(told)
    assert all(told in problem for problem in found)


def test_another_order_each_time_and_the_same_by_the_same_seed(folder: Any) -> None:
    wording = Wording(SHOWN, "letter")
    samples = read(folder, [{}, {"options": ["a", "blue"]}], SHOWN, "letter")
    shown = Shuffled(samples, {"": wording})
    torch.manual_seed(0)
    first = [shown[0] for _ in range(24)]
    torch.manual_seed(0)
    assert [shown[0] for _ in range(24)] == first
    assert len({one.options for one in first}) == 6
    for one in first:
        assert one.question == f"look: which? {wording.listed(one.options)}"
        assert without_options(one, wording) == "look: which? "
        assert one.answers == ("blue",)
    assert reordered(samples[1], [1, 0], wording).question == "look: which? A. blue B. a"
    assert Shuffled(samples, {"other": wording})[0] == samples[0]
    assert plain(shown) is samples
    assert fingerprint(samples) != fingerprint([first[0], samples[1]]) or first[0].options == samples[0].options


def test_built_in_questions_have_options_of_their_topic() -> None:
    config = DataConfig(train_size=40, eval_size=5)
    task = TaskConfig("vqa", answers="letter", prompt="{question} {options}")
    found = load(config, task, ["train", "eval"])["train"]
    plain_ones = load(config, TaskConfig("vqa"), ["train"])["train"]
    for sample, before in zip(found, plain_ones, strict=True):
        assert sample.answers == before.answers
        assert sample.answers[0] in sample.options
        assert 2 <= len(sample.options) == len({*sample.options}) <= 4
        assert sample.question == f"{before.question} {task.wording.listed(sample.options)}"
    assert len({sample.options.index(sample.answers[0]) for sample in found}) > 1
    with pytest.raises(UserError, match="data=shapes has no hint; it has options, question, topic"):
        load(config, TaskConfig("vqa", prompt="{hint}"), ["train"])
