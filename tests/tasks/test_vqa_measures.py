"""Answers scored by other measures than VQA accuracy, and those that are chosen among options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import make_samples, small_config
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, UserError
from vlatrain.tasks import build, prepare
from vlatrain.training.batches import SharedBatches

REFERENCES = [("coca cola", "coke"), ("100",), ("sitting",)]
SAMPLES = [replace(make_samples()[0], id=str(n), answers=answers) for n, answers in enumerate(REFERENCES)]
TEXTS = [text for answers in REFERENCES for text in answers]


def answered(monkeypatch: pytest.MonkeyPatch, metric: str, said: list[str]) -> Any:
    """What a model that says this scores, and what it is compared with."""
    work: Any = build(TaskConfig(name="vqa", metric=metric), load(small_config("blip"), "vqa", texts=TEXTS))
    left = [*said]
    monkeypatch.setattr(work, "answer", lambda batch: [[(left.pop(0), 0.5)] for _ in batch["ids"]])
    return work, work.evaluate(SAMPLES, SharedBatches("cpu", 2))


@pytest.mark.parametrize(
    ("metric", "scores"),
    [
        ("anls", [100 * 8 / 9, 100 * 2 / 3, 100 * 4 / 7]),
        ("relaxed_accuracy", [0.0, 100.0, 0.0]),
    ],
)
def test_the_headline_score_is_that_of_the_measure(
    metric: str, scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, found = answered(monkeypatch, metric, ["Coca-Cola", "105", "kitten"])
    assert found.metrics[metric] == pytest.approx(sum(scores) / 3, abs=1e-6)
    assert found.metrics["accuracy"] == pytest.approx(100 / 18), "to whose script a hyphen is a blank"
    assert [record["score"] for record in found.predictions] == pytest.approx(scores, abs=1e-6)
    assert found.statistics.keys() == found.metrics.keys()
    assert found.groupings["question_words"].metrics == [metric]
    always = work.yardsticks(SAMPLES, work.constants(SAMPLES[1:2])).baselines["most_frequent_answer"]
    assert always.metrics[metric] == pytest.approx(100 / 3), "it is right about the one whose answer it is"
    assert found.metrics[metric] > always.metrics[metric] or metric == "relaxed_accuracy"


def test_what_the_tokenizer_loses_has_a_second_score_by_the_measure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = answered(monkeypatch, "anls_as_written", ["coca cola", "100", "sitting"])
    assert found.metrics["anls"] == found.metrics["anls_as_written"] == 100


OPTIONS = [("red", "blue"), ("yes", "no", "red"), ("blue", "green", "no", "yes")]
CHOICES = [
    replace(make_samples()[n], id=str(n), question=f"which {' '.join(own)}", options=own, answers=own[-1:])
    for n, own in enumerate(OPTIONS)
]


def choosing(answers: str, model: str = "blip") -> Any:
    config = TaskConfig(name="vqa", answers=answers, prompt="{question} {options}")
    texts = [text for own in OPTIONS for text in (*own, "which a. b. c. d.")]
    return build(config, load(small_config(model), "vqa", texts=texts), CHOICES)


@pytest.mark.parametrize("answers", ["options", "letter"])
def test_each_question_is_answered_by_one_of_its_own_options(answers: str) -> None:
    work = choosing(answers)
    with torch.no_grad():
        found = work.answer(work.questions(CHOICES), 9)
        evaluated = work.evaluate(CHOICES, SharedBatches("cpu", 2))
    for own, best, sample in zip(found, evaluated.predictions, CHOICES, strict=True):
        assert sorted(text for text, _ in own) == sorted(sample.options)
        assert sum(share for _, share in own) == pytest.approx(1, rel=1e-4)
        assert best["prediction"] == own[0][0]
        assert best["score"] == 100 * (own[0][0] == sample.answers[0])
    listed = build(replace(work.config, answers="rank", answer_list=["blue", "red"]), work.backbone)
    if answers == "options":  # the same as by a list
        with torch.no_grad():
            shares = dict(listed.answer(listed.questions(CHOICES[:1]), 2)[0])
        assert dict(found[0]) == pytest.approx(shares, rel=1e-4)
    assert evaluated.settings["accuracy"] == "multiple_choice"
    yardsticks = work.yardsticks(CHOICES, work.constants(CHOICES))
    assert yardsticks.baselines["chance"].metrics["accuracy"] == pytest.approx(
        100 * (1 / 2 + 1 / 3 + 1 / 4) / 3, abs=1e-6
    )
    assert yardsticks.ceilings == {"accuracy": 100}


def test_by_letter_a_letter_is_learned() -> None:
    work, by_text = choosing("letter"), choosing("options")
    decode = work.backbone.tokenizer.batch_decode
    assert [text.split()[1] for text in decode(work.collate(CHOICES)["answer"].ids)] == ["b", "c", "d"]
    assert [text.split()[1] for text in decode(by_text.collate(CHOICES)["answer"].ids)] == ["blue", "red", "yes"]
    (use,) = [use for use in work.uses() if use.name == "options"]
    assert use.of(CHOICES[1]) == ("A", "B", "C")


@pytest.mark.parametrize("model", ["vilt", "clip"])
def test_a_classifier_takes_the_likeliest_option_of_its_list(model: str, caplog: pytest.LogCaptureFixture) -> None:
    """By hand: of a list of blue, red and Yes each question takes the likeliest of its own; green and no are never chosen."""
    config = TaskConfig(name="vqa", answers="options", answer_list=["blue", "red", "Yes"])
    backbone: Any = load(small_config(model), "vqa", texts=[text for own in OPTIONS for text in own])
    work: Any = build(prepare(config, backbone), backbone)
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, -2.0], [-3.0, 5.0, -1.0]])
    backbone.answer_logits = lambda inputs: logits[: len(inputs["question"].ids)]
    found = work.answer(work.questions(CHOICES), 9)
    share = torch.sigmoid
    assert [[text for text, _ in own] for own in found] == [["red", "blue"], ["red", "yes"], ["yes", "blue"]]
    assert found[0] == [
        ("red", pytest.approx(float(share(logits[0, 1])))),
        ("blue", pytest.approx(float(share(logits[0, 0])))),
    ]
    assert work.answer(work.questions([replace(CHOICES[0], options=("x", "z"))]), 2) == [[("", 0.0)]]
    evaluated = work.evaluate(CHOICES, SharedBatches("cpu", 3))
    # right are blue, red and yes; chosen are red, red and yes
    assert [record["score"] for record in evaluated.predictions] == [0.0, 100.0, 100.0]
    assert evaluated.settings["ceiling"] == 100
    unlisted = [CHOICES[0], replace(CHOICES[2], answers=("green",))]
    backbone.answer_logits = lambda inputs: logits[[0, 2]]
    assert work.evaluate(unlisted, SharedBatches("cpu", 3)).metrics["accuracy"] == 0
    assert work.yardsticks(unlisted, {}).ceilings == {"accuracy": 50}
    assert "2 of 5 options are not in the list of answers that the model chooses from" in caplog.text
    assert work.collate(CHOICES)["targets"].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_a_question_without_options_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"0: has no options, and task.answers=options chooses among them: ask with input=FILE"
    ):
        choosing("options").questions([replace(CHOICES[0], options=(), source="")])
