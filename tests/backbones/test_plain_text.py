"""Texts come out of a tokenizer as people write them, and nothing in them is read as a special token."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.backbones import composites
from tests.backbones.chatting import shared
from tests.conftest import make_samples, model_config, small_config
from vlatrain.backbones.base import Converser, Generator
from vlatrain.backbones.loading import load
from vlatrain.backbones.plain_text import joined, marked, unmarked
from vlatrain.data.sample import Turn

USUAL = [
    *("3.5", "10:30", "50%", "$5", "1,000", "12,345,678", "#1", "-5", "1/2", "3-4", "10/11/2020", "+49", "1, 2, 3"),
    *("don't", "nike's", "we're", "o'clock", "it's 3 p.m.", "u.s.", "t-shirt", "red/white", "a_b"),
    *("(red)", "[left]", '"stop"', 'he said "no" twice', "time: noon", "what?", "yes, it is."),
]


@pytest.mark.parametrize("name", ["tiny_blip", "tiny_clip", "tiny_composite"])
def test_usual_answers_come_back(name: str) -> None:
    task = "instruct" if name == "tiny_composite" else "classification"
    backbone = (
        load(composites.described("tiny_clip", "tiny_gpt", "tiny_composite"), task)
        if name == "tiny_composite"
        else load(model_config(name), task)
    )
    assert backbone.as_written(USUAL) == USUAL


def test_what_a_tokenizer_has_lost_does_not_come_back() -> None:
    assert load(model_config("tiny_blip"), "vqa").as_written(["Café", "3.5"]) == ["cafe", "3.5"]


def test_texts_with_blanks_on_purpose_stay() -> None:
    for text in ("a red and a blue one", "one. two", "at 3 a dog", "cats, dogs", "the dogs ' bowls"):
        assert joined(text) == text


TOKENS = {
    "blip": ("[SEP]", "[DEC]"),
    "clip": ("[SEP]", "[CLS]"),
    "vilt": ("[SEP]", "[CLS]"),
    "llava": ("<image>", "<|im_end|>"),
    "qwen2_5_vl": ("<|image_pad|>", "<|vision_start|>"),
    "blip2_opt": ("<image>", "[SEP]"),
    "florence2": ("<image>", "[SEP]"),
}


def made(name: str) -> Any:
    if name in ("clip", "vilt"):
        return load(small_config(name), "retrieval" if name == "clip" else "vqa", texts=["a red b"])
    return shared(name)


@pytest.mark.parametrize("name", TOKENS)
def test_special_tokens_in_texts_are_text(name: str) -> None:
    backbone = made(name)
    image = Image.new("RGB", (56, 56))
    for token in TOKENS[name]:
        number, said = backbone.tokenizer.convert_tokens_to_ids(token), f"a {token} b"
        assert number != backbone.tokenizer.unk_token_id
        assert all(number not in ids for ids in backbone.tokens([said]))
        plain, other = backbone.text(["a b"], 40).ids, backbone.text([said], 40).ids
        assert (plain == number).sum() == (other == number).sum()
        if isinstance(backbone, Generator):
            (target, _), (same, _) = backbone.target([said], 40), backbone.target(["a b"], 40)
            assert (target.ids == number).sum() == (same.ids == number).sum()
            inputs = [backbone.inputs([image], [question], 40) for question in (said, "a b")]
            counts = {
                sum(int((value == number).sum()) for value in own.values() if getattr(value, "dtype", None) is not None)
                for own in inputs
                if "input_ids" in own
            }
            assert len(counts) < 2
            assert "a" in backbone.as_written([said])[0]
            assert "b" in backbone.as_written([said])[0]
        if isinstance(backbone, Converser):
            turns = [[Turn(said, f"{token} c")], [Turn("a b", "c")]]
            pairs = [backbone.conversations([image], [own], 200) for own in turns]
            images = [int((inputs["input_ids"] == number).sum()) for inputs, _ in pairs]
            assert len(set(images)) == 1
            learned = [int((target.ids[target.mask == 1] == number).sum()) for _, target in pairs]
            assert learned[0] == learned[1]


def test_marks_are_put_in_once_and_taken_out() -> None:
    special = made("blip")._special_tokens
    text = marked("a [SEP] b", special)
    assert text != "a [SEP] b"
    assert marked(text, special) == text
    assert unmarked(text) == "a [SEP] b"


def test_a_text_that_is_cut_has_no_end() -> None:
    for name in ("blip", "blip2_opt", "florence2", "llava"):
        backbone = shared(name)
        long = " ".join(make_samples()[0].captions) * 5
        whole, given = backbone.target([long], 1000)
        cut, _ = backbone.target([long], 4)
        assert cut.ids[0, given:].tolist() == whole.ids[0, given : given + 4].tolist()
        ends = whole.ids[0, -1]
        assert cut.ids[0, -1] != ends
        fits = int(whole.mask[0].sum()) - given
        assert backbone.target([long], fits)[0].ids[0].tolist() == whole.ids[0].tolist()
