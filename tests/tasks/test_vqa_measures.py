"""Answers scored by other measures than VQA accuracy, and those that are chosen among options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import make_samples, small_config
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig
from vlatrain.tasks import build
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
