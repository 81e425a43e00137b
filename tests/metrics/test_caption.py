"""Caption scores against pycocoevalcap's (`references.json`, see `make_references.py`)."""

from __future__ import annotations

import json
import math
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.metrics.make_references import blocks, images
from vlatrain.metrics import caption

SCORES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "references.json").read_text("utf8"))["scores"]


@pytest.mark.parametrize(("name", "count"), [("all", None), ("four", 4), ("one", 1)])
def test_scores_are_those_of_pycocoevalcap(name: str, count: int | None) -> None:
    candidates, references = images(blocks())
    found = caption.score(candidates[:count], references[:count])
    expected = dict(SCORES[name])
    assert found.per_sample == pytest.approx(expected.pop("per_sample"), abs=1e-6)
    assert found.corpus() == pytest.approx(expected, abs=1e-6)


def test_one_image_has_no_document_frequencies_and_scores_zero_cider() -> None:
    assert caption.score(["a dog runs fast"], [["a dog runs fast"]]).cider_d == 0.0


def test_perfect_captions() -> None:
    captions = ["a dog runs in the park", "two red cars on a road"]
    found = caption.score(captions, [[c] for c in captions])
    assert [found.bleu_4, found.rouge_l] == pytest.approx([100.0, 100.0])
    assert found.cider_d == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("reference_captions", "bleu_1"),
    [
        (["a red dog runs", "a"], 100.0 * math.exp(1 - 4 / 3)),  # the closest length, not the shortest
        (["a red dog runs", "a red"], 100.0),  # of two as close the shorter
    ],
)
def test_brevity_is_measured_against_the_closest_reference(reference_captions: list[str], bleu_1: float) -> None:
    assert caption.score(["a red dog"], [reference_captions]).bleu_1 == pytest.approx(bleu_1)


def test_tokens_matter() -> None:
    """Punctuation and case cost nothing; a possessive is two tokens."""
    found = caption.score(["A dog's bowl.", "Red cars!"], [["a dog 's bowl"], ["red cars"]])
    assert [found.bleu_1, found.rouge_l] == pytest.approx([100.0, 100.0])


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="no captions"):
        caption.score([], [])
    with pytest.raises(ValueError, match="2 candidates but 1"):
        caption.score(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match=r"without reference captions: \[1\]"):
        caption.score(["a", "b"], [["a"], []])


def test_optional_scores_say_why_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption, "find_spec", lambda name: None)
    scores, skipped = caption.optional_scores(["a dog"], [["a dog"]])
    assert scores == {}
    assert set(skipped) == {"meteor", "spice"}
    assert "pip install 'vlatrain[captions]'" in skipped["meteor"]


@pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed")
def test_without_java_the_optional_scores_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scores, skipped = caption.optional_scores(["a dog"], [["a dog"]])
    assert (scores, set(skipped)) == ({}, {"meteor", "spice"})
    assert "Java" in skipped["spice"]


@pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed")
def test_a_java_program_that_fails_costs_its_own_score_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, *_: object) -> float:
        if name == "spice":
            raise RuntimeError("no memory")
        return 0.25

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(caption, "_run_java", run)
    assert caption.optional_scores(["a"], [["a"]]) == ({"meteor": 25.0}, {"spice": "RuntimeError: no memory"})


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pycocoevalcap") is None or shutil.which("java") is None, reason="needs Java")
def test_meteor_runs_where_java_is() -> None:
    scores, skipped = caption.optional_scores(["a dog runs", "a red car"], [["a dog runs"], ["the car is red"]])
    assert 0 < scores["meteor"] < 100
    assert scores.keys() | skipped.keys() == {"meteor", "spice"}
