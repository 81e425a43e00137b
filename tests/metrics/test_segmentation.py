"""Scores of segmentations against their definitions, written out pixel by pixel, and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score

from vlatrain.metrics import segmentation
from vlatrain.metrics.bootstrap import intervals

IGNORE = 9


def images(seed: int, classes: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Masks of several sizes, of classes of which one is nowhere, and predictions that are right half of the time."""
    draw = np.random.default_rng(seed)
    shapes = [(5, 7), (3, 3), (8, 2), (6, 6)]
    truth = [draw.choice([0, 1, 3, IGNORE], size=shape, p=[0.5, 0.2, 0.2, 0.1]) for shape in shapes]
    predicted = [
        np.where(draw.random(own.shape) < 0.5, own % classes, draw.choice([0, 1, 3], own.shape)) for own in truth
    ]
    return truth, predicted


def test_scores_are_by_their_definitions() -> None:
    for seed in range(5):
        truth, predicted = images(seed)
        confusions = np.stack(
            [segmentation.confusion(one, other, 4, IGNORE) for one, other in zip(truth, predicted, strict=True)]
        )
        pairs = [
            (int(t), int(p))
            for one, other in zip(truth, predicted, strict=True)
            for t, p in zip(one.ravel(), other.ravel(), strict=True)
            if t != IGNORE
        ]
        each = []
        for number in range(4):
            both = sum(t == number and p == number for t, p in pairs)
            either = sum(t == number or p == number for t, p in pairs)
            if either:
                each.append(100 * both / either)
        found = segmentation.score(confusions)
        assert found["miou"] == pytest.approx(sum(each) / len(each))
        assert np.isnan(segmentation.ious(confusions)).tolist() == [False, False, True, False]
        t, p = zip(*pairs, strict=True)
        assert found["miou"] == pytest.approx(100 * jaccard_score(t, p, labels=[0, 1, 3], average="macro"))
        assert found["pixel_accuracy"] == pytest.approx(100 * accuracy_score(t, p))
        assert found["mean_accuracy"] == pytest.approx(100 * balanced_accuracy_score(t, p))
        assert 0 <= intervals(segmentation.statistics(confusions), [4])["miou"][0] <= found["miou"]


def test_a_set_is_scored_by_its_pixels_and_not_by_its_images() -> None:
    large, small = np.zeros((10, 10), int), np.ones((1, 1), int)
    confusions = np.stack(
        [segmentation.confusion(large, large, 2, IGNORE), segmentation.confusion(small, 1 - small, 2, IGNORE)]
    )
    assert segmentation.score(confusions)["pixel_accuracy"] == pytest.approx(100 * 100 / 101)
    assert segmentation.score(confusions)["miou"] == pytest.approx((100 * 100 / 101 + 0) / 2)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="without a pixel"):
        segmentation.score(segmentation.confusion(np.full((2, 2), IGNORE), np.zeros((2, 2), int), 2, IGNORE)[None])


def test_shares_come_largest_first_and_without_what_is_not_there() -> None:
    assert segmentation.shares([1, 0, 3], ["a", "b", "c"]) == [("c", 0.75), ("a", 0.25)]
