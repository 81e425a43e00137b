"""Replies: exact match after normalisation, ROUGE-L worked by hand, perplexity."""

from __future__ import annotations

import math

import pytest

from vlatrain.metrics import caption, instruct


def test_scores() -> None:
    found = instruct.score(["The star is RED!", "a small ring"], ["the star is red.", "a large ring"])
    assert found.exact_match == 50
    # two of three words in common, in order: precision and recall 2/3, whatever beta
    assert found.per_sample == pytest.approx([100, 100 * 2 / 3])
    assert found.rouge_l == pytest.approx((100 + 200 / 3) / 2)


def test_rouge_is_that_of_captions() -> None:
    texts, references = ["a red star", "nothing at all"], ["the red star is small", "two rings"]
    found = instruct.score(texts, references)
    assert found.rouge_l == pytest.approx(caption.score(texts, [[text] for text in references]).rouge_l)
    assert found.exact_match == 0


def test_nothing_and_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="no captions"):
        instruct.score([], [])
    with pytest.raises(ValueError, match="2 candidates"):
        instruct.score(["a", "b"], ["a"])


def test_perplexity_of_guessing_is_the_number_of_choices() -> None:
    assert instruct.perplexity(3 * math.log(7), 3) == pytest.approx(7)
