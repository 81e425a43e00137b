"""Multiple choice becomes the text of the option; conversations whose messages have columns of their own become conversations."""

from __future__ import annotations

import base64

import pytest

from tests.data.writing import files, load_train, problems_of, write_images, write_records
from vlatrain.config import TaskConfig
from vlatrain.data import load_inputs
from vlatrain.data.images import identity, is_shown
from vlatrain.data.sample import Turn

OPTIONS = ["red", "blue", "green"]


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 3)
    return tmp_path


def answers(folder, rows, **columns):
    records = [{"image": f"{number % 3}.png", "question": "q", **row} for number, row in enumerate(rows)]
    found = load_train(files(write_records(folder / "d.jsonl", records), columns=columns))
    return [sample.answers[0] for sample in found]


CHOICES = [
    ([0, 2], ["red", "green"], "numbers from 0"),
    ([1, 3], ["red", "green"], "numbers from 1"),
    (["1", "0"], ["blue", "red"], "numbers from 0"),
    (["A", "C"], ["red", "green"], "letters"),
    (["(B)", "C."], ["blue", "green"], "letters"),
    (["blue", "red"], ["blue", "red"], ""),
    (["purple", 1], ["purple", "1"], ""),  # no choice of one kind: texts, as they are
]


@pytest.mark.parametrize("column", ["options", "choices"])
@pytest.mark.parametrize(("given", "expected", "way"), CHOICES)
def test_choices(given, expected, way, column, folder, caplog):
    with caplog.at_level("INFO", "vlatrain"):
        assert answers(folder, [{"answer": answer, column: OPTIONS} for answer in given]) == expected
    assert (f"chooses by {way};" in caplog.text) == bool(way)


def test_other_columns_of_choices(folder):
    assert answers(folder, [{"correct_choice_idx": 1, "choices": OPTIONS}]) == ["blue"]
    assert answers(folder, [{"answer": "B", "A": "red", "B": "blue", "C": None}]) == ["blue"]
    assert answers(folder, [{"answer": "B", "options": str(OPTIONS)}]) == ["blue"]
    assert answers(folder, [{"gt": "C", "options": OPTIONS}], answers="gt") == ["green"]
    assert answers(folder, [{"answer": ["red", "rose"], "options": OPTIONS}]) == ["red"]


def test_numbers_that_are_also_texts_are_asked_about(folder):
    rows = [{"image": "0.png", "question": "q", "answer": "1", "choices": ["1", "2"]}]
    train = write_records(folder / "d.jsonl", rows)
    assert problems_of(files(train)) == [
        f"{train}: column 'answer' may hold the texts of the options in 'choices' or their numbers from 0: "
        "data.columns.answers=answer takes it as texts; otherwise write the options' texts"
    ]
    assert answers(folder, [rows[0]], answers="answer") == ["1"]


def test_a_choice_of_none_is_named(folder):
    rows = [{"answer": number, "options": OPTIONS, "image": "0.png", "question": "q"} for number in [0] * 1000 + [7]]
    train = write_records(folder / "d.jsonl", rows)
    assert problems_of(files(train)) == [
        f"{train}:1001: column 'answer': 7 is none of the 3 options, which the other rows choose by numbers from 0"
    ]


DIALOGUES = {
    "LLaVA": {
        "image": "0.png",
        "conversations": [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}],
    },
    "ShareGPT": {
        "images": ["0.png"],
        "conversations": [{"from": "human", "value": "a<image>"}, {"from": "gpt", "value": "b"}],
        "tools": "",
    },
    "LLaMA-Factory": {
        "images": ["0.png"],
        "messages": [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "b"}],
    },
    "ms-swift": {"images": ["0.png"], "query": "<image>a", "response": "b"},
    "Alpaca": {"images": ["0.png"], "instruction": "a", "input": "", "output": "b"},
    "TRL": {
        "images": ["0.png"],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}],
    },
    "TRL texts": {"image": "0.png", "prompt": "a", "completion": "b"},
    "OpenAI": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "0.png"}}, {"type": "text", "text": "a"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ]
    },
    "a part with a path": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "0.png"}, {"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ]
    },
    "Qwen": {
        "messages": [
            {"role": "user", "content": [{"image": "0.png"}, {"text": "a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ]
    },
    "twice the same": {
        "image": "0.png",
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "0.png"}, {"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ],
    },
}


@pytest.mark.parametrize("form", DIALOGUES)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_conversations_as_trainers_write_them(form, kind, folder):
    train = write_records(folder / f"d.{kind}", [DIALOGUES[form]])
    (sample,) = load_train(files(train), "instruct")
    assert sample.turns == (Turn("a", "b"),)
    assert sample.image.load().getpixel((0, 0)) == (0, 0, 9)


@pytest.mark.parametrize("image", ["file://{path}", "data:image/png;base64,{data}"])
def test_the_image_of_a_url_part(image, folder):
    data = base64.b64encode((folder / "1.png").read_bytes()).decode()
    url = image.format(path=folder / "1.png", data=data)
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]
    (sample,) = load_train(files(write_records(folder / "d.jsonl", [{"messages": messages}])), "instruct")
    assert sample.image.load().getpixel((0, 0)) == (1, 0, 9)


def test_what_was_said_before_and_by_the_system(folder):
    swift = {"images": ["0.png"], "query": "<image>c", "response": "d", "history": [["a", "b"]], "system": "be brief"}
    alpaca = {"images": ["0.png"], "instruction": "c", "input": "d", "output": "e", "history": [["a", "b"]]}
    (first,) = load_train(files(write_records(folder / "d.jsonl", [swift])), "instruct")
    assert first.turns == (Turn("be brief\n\na", "b"), Turn("c", "d"))
    (second,) = load_train(files(write_records(folder / "e.jsonl", [alpaca])), "instruct")
    assert second.turns == (Turn("a", "b"), Turn("c\nd", "e"))


def test_a_question_without_its_reply_is_an_input(folder):
    path = write_records(folder / "d.jsonl", [{"images": ["0.png"], "query": "<image>a"}])
    (sample,) = load_inputs(str(path), files("unused"), TaskConfig("instruct"))
    assert sample.turns == (Turn("a"),)


def test_two_forms_are_both_named(folder):
    row = {"images": ["0.png"], "query": "a", "response": "b", "prompt": "a", "completion": "b"}
    train = write_records(folder / "d.jsonl", [row])
    assert problems_of(files(train), "instruct") == [
        f"{train}: the rows could be read as ms-swift's query and response and as TRL's prompt and completion: write one of them "
        "as 'messages', or leave out its columns"
    ]


def said(*texts):
    return [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(texts)]


FAULTS = [
    (
        {"image": "0.png", "conversations": said("a", "b"), "tools": '[{"name": "search"}]'},
        "column 'tools': describes tools, whose calls are not taken; leave such conversations out",
    ),
    (
        {"image": "0.png", "conversations": [*said("a"), {"from": "observation", "value": "b"}]},
        "column 'conversations': message 2: 'from' is 'observation': calls of tools and their results are not taken; leave such "
        "conversations out",
    ),
    (
        {"conversations": said("<image>a", "b")},
        "column 'image': the conversation shows an image, and there is none",
    ),
    ({"image": "0.png", "conversations": 3}, "column 'conversations': expected a list of messages, found int"),
]


@pytest.mark.parametrize(("row", "message"), FAULTS)
def test_what_is_not_taken_is_named(row, message, folder):
    good = {"image": "1.png", "conversations": said("a", "b"), "tools": None}
    train = write_records(folder / "d.jsonl", [good, row])
    assert problems_of(files(train), "instruct") == [f"{train}:2: {message}"]


def test_conversations_without_images_are_learned_dropped_or_refused(folder, caplog):
    rows = [{"image": f"{number}.png", "conversations": said("<image>a", "b")} for number in range(2)]
    rows += [{"conversations": said("a", "b")}, {"image": "", "conversations": said("c", "d")}]
    train = write_records(folder / "d.jsonl", rows)
    assert problems_of(files(train, text_only="refuse"), "instruct") == [
        f"{train}:3: a conversation without an image, and 1 more, and data.text_only=refuse: give it one, or set data.text_only to "
        "train or drop"
    ]
    with caplog.at_level("INFO", "vlatrain"):
        assert len(load_train(files(train, text_only="drop"), "instruct")) == 2
        whole = load_train(files(train), "instruct")
    assert [is_shown(sample.image) for sample in whole] == [True, True, False, False]
    assert whole[2].image.key == whole[3].image.key
    assert identity(whole[2].image) != identity(whole[3].image)
    assert [message for message in caplog.messages if "without an image" in message] == [
        f"{train}:3: a conversation without an image, and 1 more: left out (data.text_only=drop)",
        f"{train}:3: a conversation without an image, and 1 more: learned as text (data.text_only=train)",
    ]
    none = write_records(folder / "f.jsonl", [{"image": "", "conversations": said("a", "b")}])
    assert problems_of(files(none), "instruct") == [f"{none}: none of the conversations has an image"]
    alone = write_records(folder / "e.jsonl", [{"photo": "0.png", "conversations": said("a", "b")}])
    assert problems_of(files(alone), "instruct") == [
        f"{alone}: no column 'image' or 'images'; the columns are photo, conversations; did you mean data.columns.image=photo?"
    ]


def test_marks_elsewhere_are_told_once(folder, caplog):
    texts = [("a", "b", "<image>c", "d"), ("<image><image>a", "b"), ("<image>\na", "b")]
    rows = [{"image": f"{number}.png", "conversations": said(*one)} for number, one in enumerate(texts)]
    train = write_records(folder / "d.jsonl", rows)
    with caplog.at_level("INFO", "vlatrain"):
        found = load_train(files(train), "instruct")
    assert [sample.turns[-1].user for sample in found] == ["c", "a", "a"]
    assert caplog.messages == [
        f"{train}:1: marks the image's place later, or several times, and 1 more: it is shown once, before the first message"
    ]


def test_several_images_are_named_once(folder):
    several = {
        "images": ["0.png", "1.png"],
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }
    rows = [{**several, "images": ["0.png"]}, several, several]
    train = write_records(folder / "d.jsonl", rows)
    expected = (
        "2 images, and 1 more: data.max_images=1 is the most of a sample: set a larger one, or leave such rows out"
    )
    assert problems_of(files(train, max_images=1), "instruct") == [f"{train}:2: {expected}"]
    for task, row in (
        ("vqa", {"question": "q", "answer": "a"}),
        ("captioning", {"caption": "x"}),
        ("classification", {"label": "x"}),
    ):
        rows = [{"image": images, **row} for images in (["0.png"], ["1.png"], ["0.png", "2.png"], ["2.png", "1.png"])]
        train = write_records(folder / f"{task}.json", rows)
        one = "2 images, and 1 more: this task takes one image a sample: write a row for each, or leave such rows out"
        said = one if task == "classification" else expected
        assert problems_of(files(train, max_images=1), task) == [f"{train}[2]: {said}"]
        assert len(load_train(files(write_records(folder / f"{task}.json", rows[:2])), task)) == 2


def test_history_must_be_pairs(folder):
    train = write_records(folder / "d.jsonl", [{"images": ["0.png"], "query": "a", "response": "b", "history": ["a"]}])
    assert problems_of(files(train), "instruct") == [
        f"{train}:1: column 'query': history: expected pairs of what was said and replied"
    ]
