"""Tokenizers made from data: the same every time, whole words, and nothing unknown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlatrain.backbones.tokenizers import ALPHABET, make_wordpiece, token_ids

TEXTS = ["A red circle, a blue circle.", "is there a square?", "What colour?"]


def test_is_a_function_of_the_texts() -> None:
    one, two = (make_wordpiece(TEXTS, 500) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()
    assert one.tokenize("a red circle?") == ["a", "red", "circle", "?"]
    assert len(make_wordpiece(TEXTS, 145)) == 145


@given(st.text(ALPHABET + " ", max_size=30))
def test_nothing_is_unknown(text: str) -> None:
    tokenizer = make_wordpiece(TEXTS, 500)
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_special_tokens_frame_a_text_and_have_the_ids_a_model_needs() -> None:
    tokenizer = make_wordpiece(TEXTS, 500)
    ids = token_ids(tokenizer)
    assert tokenizer("red")["input_ids"] == [tokenizer.cls_token_id, tokenizer.get_vocab()["red"], ids["sep_token_id"]]
    assert ids["pad_token_id"] == tokenizer.pad_token_id
    assert tokenizer.decode(tokenizer("red circle")["input_ids"], skip_special_tokens=True) == "red circle"
