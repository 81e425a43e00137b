"""VQA accuracy: the cases of the challenge's script, its processing, and the variants."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlatrain.metrics import vqa


@pytest.mark.parametrize(
    ("prediction", "answers", "accuracy"),
    [
        ("the dog", ["the dog"] * 10, 100.0),  # all agree: nothing is processed (LAVIS: 0)
        ("two", ["2"] * 10, 0.0),  # (LAVIS: 100)
        ("Yes", ["yes"] * 10, 0.0),
        ("red", ["red"] * 2 + ["blue"] * 8, 60.0),  # not 66.7
        ("red", ["red"] * 1 + ["blue"] * 9, 30.0),
        ("red", ["red"] * 3 + ["blue"] * 7, 90.0),
        ("red", ["red"] * 4 + ["blue"] * 6, 100.0),
        ("two", ["2"] * 9 + ["3"], 100.0),  # annotators differ: processed
        ("The Dog!", ["dog"] * 5 + ["a dog"] * 5, 100.0),
        (" red\n", ["red"] * 10, 100.0),  # the ends are stripped always
        ("red", ["red", "red"], 100.0 / 3),  # two annotators: the script's definition allows no more
    ],
)
def test_official_cases(prediction: str, answers: list[str], accuracy: float) -> None:
    scores = vqa.score([prediction], [answers])
    assert scores.accuracy == pytest.approx(accuracy)
    assert scores.variant == "official"


@pytest.mark.parametrize(
    ("answer", "processed"),
    [
        ("The Dog", "dog"),
        ("none", "0"),
        ("ten dogs", "10 dogs"),
        ("dont", "don't"),
        ("youd've", "you'd've"),
        ("somebody'd", "somebodyd"),  # the script's slip
        ("Im", "im"),  # an entry of the script's that never takes effect
        ("red/white", "red white"),
        ("red / white", "red white"),
        ("x-ray", "x ray"),
        ("1,000", "1000"),
        ("1,000-2", "10002"),  # a comma within a number makes every mark vanish
        ("3.5", "3.5"),
        ("u.s.", "us"),
        ("what?", "what"),
        ("it's", "it's"),
        ("b: c", "b: c"),  # a colon is no punctuation to the script
        ("." * 40, "." * 8),  # 32 periods at most: a flag in the place of a count
    ],
)
def test_processing(answer: str, processed: str) -> None:
    assert vqa.process(answer) == processed


def test_the_contractions_are_those_of_the_script() -> None:
    """114 effective entries; the sum is that of the script's table at a013f00, sorted, without what has no effect."""
    import hashlib
    import json

    table = json.dumps(sorted(vqa._CONTRACTIONS.items()))
    assert hashlib.sha256(table.encode()).hexdigest().startswith("853d25c89947b7f6d41f6c5f81b2d6c3")


def test_a_single_reference_is_matched_exactly_after_normalisation() -> None:
    scores = vqa.score(["Two", "the red one", "A", "blue"], [["2"], ["red 1"], ["the"], ["red"]])
    assert scores.per_sample == [100.0, 100.0, 0.0, 0.0]
    assert scores.variant == "exact"
    assert scores.ceiling == 100.0


def test_mixed_references_and_the_ceiling() -> None:
    scores = vqa.score(["red", "red"], [["red"], ["red", "red"]])
    assert scores.variant == "mixed"
    assert scores.per_sample == pytest.approx([100.0, 100 / 3])
    assert scores.ceiling == pytest.approx((100 + 100 / 3) / 2)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        vqa.score([], [])
    with pytest.raises(ValueError, match="1 predictions but 2"):
        vqa.score(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match=r"without reference answers: \[1\]"):
        vqa.score(["a", "b"], [["a"], []])


words = st.sampled_from(["red", "Red", "the red", "two", "2", "dont", "a/b", "a / b", "1,000", "x.y.", "?", ""])


@given(words, st.lists(words, min_size=2, max_size=12))
def test_the_mean_over_left_out_annotators_by_its_definition(prediction: str, answers: list[str]) -> None:
    if len(set(answers)) > 1:
        prediction_, answers_ = vqa.process(prediction), [vqa.process(a) for a in answers]
    else:
        prediction_, answers_ = prediction, answers
    total = 0.0
    for left_out in range(len(answers)):
        others = answers_[:left_out] + answers_[left_out + 1 :]
        total += min(1.0, sum(other == prediction_ for other in others) / 3)
    scores = vqa.score([prediction], [answers])
    assert scores.accuracy == pytest.approx(100 * total / len(answers))
    assert scores.accuracy <= scores.ceiling + 1e-9


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
def test_what_answers_are_worth_is_what_they_score(count: int) -> None:
    generator = random.Random(count)
    for _ in range(50):
        answers = generator.choices(["Two", "2", "the dog", "dog", "yes", "no "], [9, 1, 3, 1, 2, 1], k=count)
        found = vqa.worth(answers)
        assert set(found) == set(answers)
        assert {answer: 100 * value for answer, value in found.items()} == pytest.approx(
            {answer: vqa.score([answer], [answers]).accuracy for answer in answers}
        )
        assert max(found.values()) == pytest.approx(vqa.ceiling([answers]) / 100)
