"""Conversations: both forms, every way one can be wrong, and what prediction may leave out."""

from __future__ import annotations

import json

import pytest

from tests.data.writing import FORMATS, files, load_train, problems_of, write_images, write_records
from vlatrain.config import TaskConfig
from vlatrain.data import load_inputs
from vlatrain.data.cells import CellError
from vlatrain.data.sample import Turn
from vlatrain.data.turns import conversation


def llava(*texts):
    """LLaVA's form, the speakers in turn."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def chat(*contents):
    """Chat messages, the speakers in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


SHOWN = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
GOOD = [
    (llava("<image>\nwhat is it?", "a door"), (Turn("what is it?", "a door"),)),
    (llava("<image><image>a", "b"), (Turn("a", "b"),)),
    (llava("<image>a", "b", "<image>c", "d"), (Turn("a", "b"), Turn("c", "d"))),
    ([{"role": "system", "content": "<image>be brief"}, *chat("a", "b")], (Turn("be brief\n\na", "b"),)),
    ([{"role": "developer", "content": "be brief"}, *chat("a", "b")], (Turn("be brief\n\na", "b"),)),
    (
        chat([{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "0.png"}], "b"),
        (Turn("a", "b"),),
    ),
    (llava("what is it?\n<image>", " a door\n"), (Turn("what is it?", "a door"),)),
    (llava("a", "b", "c", 4), (Turn("a", "b"), Turn("c", "4"))),
    (chat(SHOWN, "a door"), (Turn("what is it?", "a door"),)),
    (chat(SHOWN, [{"type": "text", "text": "a"}, {"type": "text", "text": "door"}]), (Turn("what is it?", "a\ndoor"),)),
    (chat("what is it?", "a door"), (Turn("what is it?", "a door"),)),
    ([{"role": "system", "content": "be brief"}, *chat("<image>a", "b")], (Turn("be brief\n\na", "b"),)),
    (json.dumps(llava("a", "b")), (Turn("a", "b"),)),
    (str(llava("a", "b")), (Turn("a", "b"),)),
    ({"from": ["human", "gpt"], "value": ["a", "b"]}, (Turn("a", "b"),)),
]


@pytest.mark.parametrize(("value", "expected"), GOOD)
def test_both_forms(value, expected):
    assert conversation(value).turns == expected
    assert conversation(value, finished=False).turns == expected


BAD = [
    (None, "expected a list of messages, found nothing"),
    ("what is it?", "expected a list of messages, found str"),
    ({"role": "user", "content": "a"}, "expected a list of messages, found an object"),
    ({"from": ["human", "gpt"], "value": ["a"]}, "the lists of a conversation differ in length"),
    ([], "a conversation without messages"),
    ([{"from": "system", "value": "be brief"}], "a conversation of the system alone"),
    (
        [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "<ref-object> at <bbox>"}],
        "message 2: <bbox> stands for what is in 'objects', which only task=grounding and grounding_words take; write names and "
        "boxes into the text",
    ),
    (["a", "b"], "message 1: expected an object, found str"),
    ([{"from": "human", "content": "a"}], "message 1: needs 'from' and 'value', or 'role' and 'content'"),
    (
        [*llava("a"), {"from": "bot", "value": "b"}],
        "message 2: 'from' is 'bot'; it must be one of human, user, gpt, assistant, system, developer",
    ),
    (llava("a", ["b"]), "message 2: expected text, found a list"),
    (chat([{"type": "video"}], "b"), "message 1: a part of type 'video'; it must be text or image"),
    (chat(["a"], "b"), "message 1: a part of type None; it must be text or image"),
    (llava("a", "<image>b"), "message 2: the assistant shows an image; an image is shown by the user"),
    (
        llava("a", "b")[::-1],
        "message 1 is the assistant's, where one of the user was expected: user and assistant take turns, the user first",
    ),
    (
        [*chat("a"), *chat("b")],
        "message 2 is the user's, where one of the assistant was expected: user and assistant take turns, the user first",
    ),
    (
        [*llava("a", "b"), {"from": "system", "value": "c"}],
        "message 3 is the system's, where one of the user was expected: user and assistant take turns, the user first",
    ),
    (llava("<image>\n", "b"), "message 1: empty message"),
    (llava("a", " "), "message 2: empty reply"),
    ([{"role": "system", "content": "be brief"}, *chat("a", "")], "message 3: empty reply"),
    (llava("a", "", "c", "d"), "message 2: empty reply"),
    (llava("a", "b", "c"), "the last message has no reply"),
]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_what_is_wrong_is_told(value, message):
    with pytest.raises(CellError) as caught:
        conversation(value)
    assert str(caught.value) == message


@pytest.mark.parametrize("form", [llava, chat])
def test_a_question_may_end_without_its_reply(form):
    for texts in (("a", "b", "c"), ("a", "b", "c", "")):
        assert conversation(form(*texts), finished=False).turns == (Turn("a", "b"), Turn("c"))
    with pytest.raises(CellError, match="message 2: empty reply"):
        conversation(form("a", "", "c"), finished=False)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_files_of_every_format(kind, column, tmp_path):
    write_images(tmp_path, 2)
    records = [
        {"image": "0.png", column: llava("<image>\na", "b", "c", "d")},
        {"image": "1.png", column: llava("e", "f")},
    ]
    found = load_train(files(write_records(tmp_path / f"d.{kind}", records)), "instruct")
    assert [sample.turns for sample in found] == [(Turn("a", "b"), Turn("c", "d")), (Turn("e", "f"),)]
    assert found[0].question == found[0].label == ""


def test_bad_conversations_are_named_by_file_and_line(tmp_path):
    write_images(tmp_path, 1)
    bad = [llava("a"), llava("a", ""), None]
    train = write_records(tmp_path / "d.jsonl", [{"image": "0.png", "conversations": value} for value in bad])
    assert problems_of(files(train), "instruct") == [
        f"{train}:1: column 'conversations': the last message has no reply",
        f"{train}:2: column 'conversations': message 2: empty reply",
        f"{train}:3: column 'conversations': expected a list of messages, found nothing",
    ]
    other = write_records(tmp_path / "e.jsonl", [{"image": "0.png", "dialogue": []}])
    assert problems_of(files(other), "instruct") == [
        f"{other}: no column 'conversations' or 'messages'; the columns are image, dialogue; did you mean "
        "data.columns.conversations=dialogue?"
    ]


def test_inputs_end_with_what_is_asked(tmp_path):
    write_images(tmp_path, 1)
    train = write_records(tmp_path / "d.jsonl", [{"image": "0.png", "chat": chat("a", "b", "c")}])
    (sample,) = load_inputs(str(train), files("unused", columns={"conversations": "chat"}), TaskConfig("instruct"))
    assert sample.turns == (Turn("a", "b"), Turn("c"))
