"""ANLS, relaxed accuracy and multiple choice, by hand."""

from __future__ import annotations

import random
from functools import cache

import pytest

from vlatrain.metrics.structured import levenshtein, number_in, per_sample, relaxed, similarity


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("coca-cola", "coca cola", 1),
        ("ab", "ba", 2),
    ],
)
def test_distances(one: str, other: str, distance: int) -> None:
    assert levenshtein(one, other) == levenshtein(other, one) == distance


def test_distances_are_those_of_the_definition() -> None:
    @cache
    def defined(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        replaced = defined(one[1:], other[1:]) + (one[0] != other[0])
        return min(replaced, defined(one[1:], other) + 1, defined(one, other[1:]) + 1)

    draw = random.Random(0)
    for _ in range(200):
        one, other = ("".join(draw.choices("abc", k=draw.randint(0, 6))) for _ in range(2))
        assert levenshtein(one, other) == defined(one, other)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("Coca  Cola ", "coca cola", 1.0),  # neither case nor blanks
        ("coca-cola", "coca cola", 8 / 9),  # but a blank is a character
        ("kitten", "sitting", 4 / 7),  # 1 - 3 / 7
        ("abcd", "abxy", 0.5),  # one half counts, as in the challenges
        ("abc", "abxyz", 0.0),  # 1 - 3 / 5 is below
        ("", "a", 0.0),
        ("", "", 1.0),
    ],
)
def test_anls_of_a_pair(prediction: str, reference: str, score: float) -> None:
    assert similarity(prediction, reference) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("-21", "-20", True),
        ("21", "-20", False),
        ("12%", "0.12", True),  # a percentage is its share
        ("12", "12%", False),
        ("3.05", "3", True),
        ("Asia ", "asia", True),
        ("Asian", "Asia", False),
        ("2,000", "2000", False),  # no number to pix2struct's evaluation, and another text
        ("2,000", "2,000", True),
        ("0.0", "0", False),  # what is within 5 % of nothing?
        ("0", "0", True),
        ("nan", "NaN", True),
        ("inf", "inf", True),
        ("yes", "1", False),
    ],
)
def test_relaxed_accuracy_of_a_pair(prediction: str, reference: str, right: bool) -> None:
    assert relaxed(prediction, reference) == right


def test_numbers_in_texts() -> None:
    texts = ("1e3", " 7 ", "-4%", "%", "1 2", "nan", "")
    assert [number_in(text) for text in texts] == [1000.0, 7.0, -0.04, None, None, None, None]


def test_the_best_reference_counts() -> None:
    references = [["dallas", "dallas texas"], ["5", "50"], ["a"]]
    assert per_sample("anls", ["dalas", "x", "A"], references) == pytest.approx([500 / 6, 0, 100], abs=1e-6)
    assert per_sample("relaxed_accuracy", ["dallas", "51", "b"], references) == [100, 100, 0]
    assert per_sample("choice", ["dallas", "5", "A"], references) == [100, 100, 0]
    with pytest.raises(ValueError, match=r"without reference answers: \[1\]"):
        per_sample("anls", ["a", "b"], [["a"], []])
