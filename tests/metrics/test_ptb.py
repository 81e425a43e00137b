"""The tokenizer against what the Java program said (`references.json`, see `make_references.py`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlatrain.metrics.ptb import tokenize

TOKENS: dict[str, str] = json.loads((Path(__file__).parent / "references.json").read_text("utf8"))["tokens"]


def test_every_reference_caption_gives_the_tokens_of_the_java_program() -> None:
    assert len(TOKENS) > 300
    wrong = {line: " ".join(tokenize(line)) for line, tokens in TOKENS.items() if " ".join(tokenize(line)) != tokens}
    assert not wrong


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog isn't here.", "a man 's dog is n't here"),
        ("you cannot, it\u2019s gonna rain", "you can not it 's gon na rain"),
        ("(left) hello!!!", "-lrb- left -rrb- hello !!!"),
        ("the U.S. flag, 3 1/2 cups", "the u.s. flag 3\u00a01/2 cups"),
        ("a red/white T-shirt for €5 \u2026 \u2013", "a red/white t-shirt for $ 5"),
        ("an 'empty' plate", "an 'em pty plate"),
        ("", ""),
        (" \n\t\u2028 ", ""),
    ],
)
def test_known_cases(caption: str, tokens: str) -> None:
    assert " ".join(tokenize(caption)) == tokens


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\t", "\u00a0", "\u2028", "  ", "\x0b"])
def test_any_white_space_separates(separator: str) -> None:
    assert tokenize(f"a dog{separator}runs") == ["a", "dog", "runs"]


def test_text_of_any_kind_is_tokenized_without_error() -> None:
    every = "".join(chr(c) for c in range(0x3100) if not 0xD800 <= c < 0xE000)
    for text in (
        every,
        " ".join(every),
        "\U0001f600 ok \ud83d",
        "a" * 10000,
        "-" * 1000,
        "(" * 1000,
        "a-" * 2000,
        "1." * 2000,
    ):
        assert all(token and not token.startswith(" ") for token in tokenize(text))
