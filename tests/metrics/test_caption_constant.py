"""The best constant caption: its scores are the metric's own, and looking for it costs no more than is said."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.metrics.make_references import blocks, images
from vlatrain.metrics import caption
from vlatrain.metrics.caption_constant import best_constant, constant_scores


def test_scores_are_the_metrics() -> None:
    _, references = images(blocks())
    candidates = [references[0][0], references[1][0], "a man a man a man on a horse", "zebra", "", references[2][0]]
    expected = [caption.score([text] * len(references), references).cider_d for text in candidates]
    assert constant_scores(candidates, references) == pytest.approx(expected, abs=1e-9)
    assert max(expected) > 1


def test_the_best_is_found() -> None:
    generator = random.Random(0)
    words = ["dog", "cat", "red", "blue", "big", "runs", "sits"]
    references = [[f"a {' '.join(generator.choices(words, k=4))}" for _ in range(2)] for _ in range(12)]
    found = best_constant(references)
    known = [text for captions in references for text in captions]
    scores = {text: caption.score([text] * 12, references).cider_d for text in known}
    assert scores[found.text] == pytest.approx(max(scores.values()))
    assert (found.tried, found.captions, found.images, found.of) == (len(scores), len(scores), 12, 12)


def test_the_cost_is_bounded_and_the_draw_seeded() -> None:
    references = [[f"picture number {place}", *(["a dog in the park"] * (place % 2))] for place in range(30)]
    found = best_constant(references, candidates=4, images=10)
    assert (found.tried, found.captions, found.images, found.of) == (4, 31, 10, 30)
    assert found == best_constant(references, candidates=4, images=10)
    assert found.text == "a dog in the park", "the most frequent ones are tried always"


def test_bleu_from_sums_is_that_of_the_drawn_samples() -> None:
    candidates, references = images(blocks())
    whole = caption.score(candidates, references)
    counts = np.bincount(
        np.random.default_rng(0).integers(len(candidates), size=len(candidates)), minlength=len(candidates)
    )
    drawn = np.repeat(np.arange(len(candidates)), counts)
    expected = caption.score([candidates[i] for i in drawn], [references[i] for i in drawn])
    found = caption.bleu_of((counts @ np.array(whole.bleu_counts)).tolist())
    assert found == pytest.approx([expected.bleu_1, expected.bleu_2, expected.bleu_3, expected.bleu_4])
    assert np.mean(np.array(whole.rouge_per_sample)[drawn]) == pytest.approx(expected.rouge_l)
