"""What a cell of answers may hold, and what becomes of it."""

from __future__ import annotations

import datetime
import decimal
import math

import pytest

from vlatrain.data.cells import CellError, check_weights, parse_list, text, texts, with_weights


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (" a b\n", "a b"),
        (None, ""),
        (math.nan, ""),
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (-0.0, "0"),
        (1e20, "1" + 20 * "0"),
        (True, "yes"),
        (False, "no"),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        ("猫", "猫"),
    ],
)
def test_text(cell, expected):
    assert text(cell) == expected


@pytest.mark.parametrize("cell", [math.inf, b"x", {"a": 1}, ["a"], "\ud800"])
def test_no_text(cell):
    with pytest.raises(CellError):
        text(cell)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("red", [("red", None)]),
        (["red", 2, True, None], [("red", None), ("2", None), ("yes", None), ("", None)]),
        ('["a", 1]', [('["a", 1]', None)]),
        ([], []),
        ({"answer": "a", "weight": 2}, [("a", 2.0)]),
        ([{"answer": "a", "answer_id": 1}, {"answer": "b"}], [("a", None), ("b", None)]),
        ({"answer": ["a", "b"], "weight": [1, 2], "other": [0]}, [("a", 1.0), ("b", 2.0)]),
    ],
)
def test_texts(cell, expected):
    assert texts(cell, key="answer") == expected


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([{"text": "a"}], "an object without 'answer'"),
        ([["a"]], "expected text, found a list"),
        ([{"answer": "a", "weight": "much"}], "a weight must be a number, found 'much'"),
        ({"answer": ["a", "b"], "weight": [1]}, "'answer' and 'weight' differ in length"),
    ],
)
def test_bad_texts(cell, message):
    with pytest.raises(CellError, match=message):
        texts(cell, key="answer")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["a", 1]', ["a", 1]),
        ("['it''s', \"b\"]", ["its", "b"]),
        ("[unclear]", "[unclear]"),
        ("['a', ", "['a', "),
        (" [] ", []),
        ('[{"answer": "a", "weight": 0.5}]', [{"answer": "a", "weight": 0.5}]),
        ("red", "red"),
    ],
)
def test_lists_written_as_text(cell, expected):
    assert parse_list(cell) == expected


def test_what_was_meant_as_a_list_and_is_none():
    with pytest.raises(CellError, match="looks like a list"):
        parse_list('["a", ]x]')


def test_objects_are_no_captions():
    with pytest.raises(CellError, match="expected text, found an object"):
        texts([{"raw": "a"}])


@pytest.mark.parametrize(
    ("cell", "expected"), [([1, 2], [1.0, 2.0]), ("[1, 2]", [1.0, 2.0]), (None, [None, 3.0]), ("", [None, 3.0])]
)
def test_weights_of_their_own_column_win(cell, expected):
    assert [weight for _, weight in with_weights([("a", None), ("b", 3.0)], cell)] == expected


def test_weights_must_match_and_make_sense():
    with pytest.raises(CellError, match="1 weights for 2 answers"):
        with_weights([("a", None), ("b", None)], 5)
    for weights, message in (
        ([1.0, None], "some answers have a weight"),
        ([1.0, -1.0], "0 or more"),
        ([0.0], "not all 0"),
        ([math.inf], "0 or more"),
    ):
        with pytest.raises(CellError, match=message):
            check_weights(weights)
    assert check_weights([None, None]) == ()
    assert check_weights([1.0, 0.0]) == (1.0, 0.0)
