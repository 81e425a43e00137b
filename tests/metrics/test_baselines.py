"""Constant answers: the best there are, found without trying them one by one."""

from __future__ import annotations

import random

import pytest

from vlatrain.metrics import vqa
from vlatrain.metrics.baselines import Constants, best_constants, majority, wording

ANSWERS = ("yes", "no", "2", "two", "a dog", "red")


def of(samples: list[tuple[str, list[str]]], **settings: int) -> Constants:
    return best_constants(((question, vqa.worth(answers)) for question, answers in samples), vqa.normalise, **settings)


@pytest.mark.parametrize("annotators", [1, 4, 10])
def test_the_constant_is_the_best_of_all_answers(annotators: int) -> None:
    generator = random.Random(annotators)
    samples = [
        (f"question {generator.randrange(3)}?", generator.choices(ANSWERS, range(1, 7), k=annotators))
        for _ in range(40)
    ]
    found = of(samples)
    references = [answers for _, answers in samples]
    scores = {answer: vqa.score([answer] * 40, references).accuracy for answer in ANSWERS}
    assert scores[found.overall] == pytest.approx(max(scores.values()))
    for number in range(3):
        own = [answers for question, answers in samples if question == f"question {number}?"]
        scores = {answer: vqa.score([answer] * len(own), own).accuracy for answer in ANSWERS}
        assert scores[found.answer(f"Question  {number} ?")] == pytest.approx(max(scores.values()))


def test_ways_of_writing_count_together() -> None:
    samples = [("q", ["Two"]), ("q", ["2"]), ("q", ["2"]), ("q", ["red"]), ("q", ["red"])]
    assert of(samples).overall == "2", "three say two, and most of them write it so"


def test_unknown_and_rare_wordings_get_the_answer_to_all() -> None:
    samples = [("is it red?", ["no"])] * 3 + [("how many?", ["2"])] * 2 + [("what is it?", ["a dog"])]
    found = of(samples, wordings=2)
    assert found == Constants("no", {"is it red": "no", "how many": "2"})
    assert [found.answer(text) for text in ("How many ?", "what is it?", "never asked")] == ["2", "no", "no"]
    assert of([]) == Constants()


def test_a_wording_is_text_without_case_blanks_and_end() -> None:
    assert wording("  Is the  Cat\n red ?") == wording("is the cat red.") == "is the cat red"
    assert wording("is it 3.5?") == "is it 3.5"


def test_the_majority() -> None:
    assert majority(["b", "a", "a", "b", "c"]) == "b", "of equals the first"
    assert majority([]) == ""
