"""Intervals from resamples, and scores as functions of how often each sample was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap as reference

from vlatrain.metrics import bootstrap, classification
from vlatrain.metrics.bootstrap import intervals, mean, mean_of, median, ratio, within

VALUES = np.random.default_rng(1).gamma(2.0, 10.0, 80)


def test_intervals_are_those_of_scipy() -> None:
    """Both draw at random; over 2,000 draws they agree to a fraction of the width."""
    found = reference((VALUES,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    low, high = intervals({"mean": mean(VALUES)}, [80])["mean"]
    width = found.high - found.low
    assert (low, high) == (pytest.approx(found.low, abs=0.06 * width), pytest.approx(found.high, abs=0.06 * width))


def test_draws_are_seeded_and_all_scores_share_them() -> None:
    scores = {"mean": mean(VALUES), "again": mean(VALUES), "double": mean(2 * VALUES)}
    found = intervals(scores, [80])
    assert found == intervals(scores, [80])
    assert found["mean"] == found["again"]
    assert found["double"] == pytest.approx([2 * end for end in found["mean"]])
    assert found["mean"] != intervals(scores, [80], seed=1)["mean"]


def test_a_set_of_samples_is_drawn_by_itself() -> None:
    """Of 2 sets each keeps its size, so a score of one does not vary with the other."""
    sizes = [0, 0]

    def counted(counts: np.ndarray) -> float:
        sizes[:] = [int(counts[:30].sum()), int(counts[30:].sum())]
        return 0.0

    intervals({"sizes": counted}, [30, 50])
    assert sizes == [30, 50]
    values = np.concatenate([np.zeros(30), VALUES[:50]])
    found = intervals({"first": within(mean(values[:30]), slice(0, 30)), "both": mean(values)}, [30, 50])
    assert found["first"] == (0.0, 0.0)
    assert found["both"][0] < found["both"][1]


def test_one_sample_says_nothing_of_others() -> None:
    assert intervals({"mean": mean([1.0])}, [1]) == intervals({"mean": mean(VALUES)}, [79, 1]) == {}
    assert intervals({}, [5]) == intervals({"mean": mean([])}, []) == {}


def test_a_score_that_a_draw_leaves_nothing_of_is_left_out_of_that_draw() -> None:
    rare = ratio([1.0, 0, 0, 0], [1.0, 0, 0, 0])  # a third of all draws of four have none of the first
    assert intervals({"rare": rare, "never": ratio([0.0] * 4, [0.0] * 4)}, [4]) == {"rare": (1.0, 1.0)}


def test_large_sets_are_drawn_fewer_times() -> None:
    assert [bootstrap.resamples(size) for size in (1, 10**5, 2 * 10**5, 10**7)] == [1000, 1000, 500, 200]


@pytest.mark.parametrize("counts", [[1, 1, 1, 1, 1], [0, 3, 1, 0, 1], [0, 0, 1, 0, 0]])
def test_counts_stand_for_repeated_samples(counts: list[int]) -> None:
    drawn = np.array(counts, dtype=float)
    values, of_sample = np.array([3, 1, 4, 1, 5, 9]), np.array([0, 0, 1, 2, 3, 4])
    repeated = [value for value, sample in zip(values, of_sample, strict=True) for _ in range(counts[sample])]
    assert median(values, of_sample)(drawn) == np.median(repeated)
    some = np.array([2.0, 7.0, 1.0, 8.0, 2.5])
    expected = [value for value, times in zip(some, counts, strict=True) for _ in range(times)]
    assert mean(some)(drawn) == pytest.approx(np.mean(expected))
    assert mean_of([mean(some), mean(some + 2)])(drawn) == pytest.approx(np.mean(expected) + 1)


@pytest.mark.parametrize("seed", range(3))
def test_classification_scores_are_sklearns_on_the_repeated_samples(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels, probabilities = generator.integers(4, size=12), generator.random((12, 5))
    counts = np.bincount(generator.integers(12, size=12), minlength=12)
    repeated = np.repeat(np.arange(12), counts)
    expected, _ = classification.score(probabilities[repeated], labels[repeated].tolist(), list("abcde"))
    for name, statistic in classification.statistics(probabilities, labels.tolist()).items():
        assert statistic(counts.astype(float)) == pytest.approx(expected[name]), name
