"""Classification metrics against their definitions, pair by pair and class by class."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vlatrain.metrics import classification


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """How often a positive is above a negative; ties count half."""
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)


def f1(truth: np.ndarray, chosen: np.ndarray, name: int) -> float:
    hits = ((truth == name) & (chosen == name)).sum()
    return 2 * hits / ((truth == name).sum() + (chosen == name).sum())


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_definitions(classes: int, seed: int) -> None:
    random = np.random.RandomState(seed)
    truth = np.concatenate([np.arange(classes), random.randint(0, classes, 25)])
    probabilities = random.dirichlet(np.ones(classes), len(truth)).round(1)  # rounded: ties
    names = [f"c{i}" for i in range(classes)]
    scores, skipped = classification.score(probabilities, truth.tolist(), names)
    chosen = probabilities.argmax(1)
    assert skipped == {}
    assert set(scores) == set(classification.NAMES)
    assert scores["accuracy"] == pytest.approx(100 * (truth == chosen).mean())
    assert scores["macro_f1"] == pytest.approx(100 * np.mean([f1(truth, chosen, c) for c in range(classes)]))
    expected = np.mean([auroc(probabilities[:, c], truth == c) for c in range(classes)])
    assert scores["auroc"] == pytest.approx(100 * expected)


def test_two_classes_have_the_usual_auroc() -> None:
    positive = np.array([0.1, 0.4, 0.35, 0.8])
    scores, _ = classification.score(np.stack([1 - positive, positive], 1), [0, 0, 1, 1], ["no", "yes"])
    assert scores["auroc"] == pytest.approx(75.0)  # three of four pairs


def test_an_absent_class_has_no_auroc_and_no_part_in_f1() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]])
    scores, skipped = classification.score(probabilities, [0, 1, 0], ["a", "b", "c"])
    assert scores == {"accuracy": 100.0, "macro_f1": 100.0}
    assert skipped == {"auroc": "no sample of class c"}
    many = [f"c{i}" for i in range(9)]
    _, skipped = classification.score(np.eye(9), [0] * 9, many)
    assert skipped == {"auroc": "no sample of class c1, c2, c3, c4, c5 and 3 more"}


def test_numbers_that_do_not_fit_are_refused() -> None:
    for probabilities, labels in ((np.zeros((2, 3)), [0]), (np.zeros((1, 2)), [0]), (np.zeros((0, 3)), [])):
        with pytest.raises(ValueError, match="probabilities"):
            classification.score(probabilities, labels, ["a", "b", "c"])
