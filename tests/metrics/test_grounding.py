"""Boxes against cases by hand, their definitions counted in pixels, and average precision step by step."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from vlatrain.metrics import grounding as metric
from vlatrain.metrics.bootstrap import intervals

RNG = random.Random(0)


def box(side: int = 12) -> tuple[float, float, float, float]:
    x1, x2 = sorted(RNG.sample(range(side + 1), 2))
    y1, y2 = sorted(RNG.sample(range(side + 1), 2))
    return float(x1), float(y1), float(x2), float(y2)


def cells(one: tuple[float, ...]) -> set[tuple[int, int]]:
    left, top, right, bottom = map(int, one)
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


def test_iou_and_giou_are_what_counting_squares_gives() -> None:
    for _ in range(200):
        one, other = box(), box()
        shared, union = len(cells(one) & cells(other)), len(cells(one) | cells(other))
        around = len(cells((*map(min, one[:2], other[:2]), *map(max, one[2:], other[2:]))))
        pair = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
        assert float(metric.iou(*pair)) == pytest.approx(shared / union, abs=1e-12)
        assert float(metric.giou(*pair)) == pytest.approx(shared / union - (around - union) / around, abs=1e-12)


def test_boxes_without_area_have_gradients() -> None:
    flat = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    metric.giou(flat, torch.tensor([[0.1, 0.1, 0.2, 0.2]])).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_scores_by_hand() -> None:
    """IoU 1, 2/3, 1/3 and none."""
    right = [[(0.0, 0.0, 1.0, 1.0)]] * 4
    found = [[((0.0, 0.0, 1.0, 1.0), 0.9)], [((0.0, 0.0, 1.0, 2 / 3), 0.9)], [((0.0, 0.0, 1.0, 1 / 3), 0.9)], []]
    scores = metric.score(found, right, several=False)
    assert scores.metrics == pytest.approx({"accuracy": 50.0, "accuracy_75": 25.0, "mean_iou": 50.0})
    assert scores.per_sample == pytest.approx([1, 2 / 3, 1 / 3, 0])
    whole = np.ones(4)
    assert {name: own(whole) for name, own in scores.statistics.items()} == pytest.approx(scores.metrics)
    low, high = intervals(scores.statistics, [4])["accuracy"]
    assert 0 <= low < 50 < high <= 100


A, B, C = (0.0, 0.0, 2.0, 2.0), (4.0, 4.0, 6.0, 6.0), (8.0, 8.0, 9.0, 9.0)


def test_average_precision_by_hand() -> None:
    """Five boxes of which the first, third and fourth are right, of four: precision 1, 1/2, 2/3, 3/4, 3/5 at recall 1/4, 1/4,
    1/2, 3/4, 3/4; made monotone 1, 3/4, 3/4, 3/4: (1 + 3/4 + 3/4) / 4."""
    found = [[(A, 0.9), (A, 0.8), (B, 0.7)], [(A, 0.6), (C, 0.1)]]
    right = [[A, B], [A, B]]
    assert metric.average_precision(found, right)(np.ones(2)) == pytest.approx(100 * (1 + 0.75 + 0.75) / 4)
    assert metric.score(found, right, several=True).metrics["ap_50"] == pytest.approx(62.5)


def brute(found: list[list[tuple[tuple[float, ...], float]]], right: list[list[tuple[float, ...]]]) -> float:
    """The definition, written out: over all recalls the best precision from there on."""
    everything = sorted(((score, n, one) for n, own in enumerate(found) for one, score in own), key=lambda x: -x[0])
    taken, hits, curve = set(), 0, []
    for number, (_, n, one) in enumerate(everything, start=1):
        fits = [len(cells(one) & cells(r)) / len(cells(one) | cells(r)) for r in right[n]]
        best = max(range(len(fits)), key=lambda k: fits[k]) if fits else -1
        if best >= 0 and fits[best] >= 0.5 and (n, best) not in taken:
            taken.add((n, best))
            hits += 1
        curve.append((hits, hits / number))
    total = sum(map(len, right))
    return 100 * sum(max((p for h, p in curve if h >= k), default=0.0) for k in range(1, total + 1)) / total


def test_average_precision_is_its_definition_of_whatever_samples_are_drawn() -> None:
    for _ in range(30):
        right = [[box(6) for _ in range(RNG.randint(0, 3))] for _ in range(8)]
        right[0] = [box(6)]
        found = [
            sorted(
                [(one, RNG.random()) for one in own if RNG.random() < 0.7]
                + [(box(6), RNG.random()) for _ in range(RNG.randint(0, 3))],
                key=lambda pair: -pair[1],
            )
            for own in right
        ]
        statistic = metric.average_precision(found, right)
        assert statistic(np.ones(8)) == pytest.approx(brute(found, right), abs=1e-9)
        some = [n for n in range(8) if n != 3]
        counts = np.array([1.0 if n in some else 0.0 for n in range(8)])
        assert statistic(counts) == pytest.approx(brute([found[n] for n in some], [right[n] for n in some]), abs=1e-9)


def test_nothing_to_find_and_nothing_to_score() -> None:
    assert metric.score([[], [(A, 0.5)]], [[], []], several=False).per_sample == [1.0, 0.0]
    assert np.isnan(metric.average_precision([[]], [[]])(np.ones(1)))
    with pytest.raises(ValueError, match="predictions for 1 samples, references for 0"):
        metric.score([[]], [], several=False)


def test_the_mean_box_has_the_mean_centre_and_sides() -> None:
    assert metric.mean_box([(0.0, 0.0, 0.2, 0.4), (0.4, 0.2, 1.0, 0.4)]) == pytest.approx((0.2, 0.1, 0.6, 0.4))
