"""Confidence intervals by the bootstrap: percentiles of a score over samples that are drawn anew, with replacement.

Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979; percentile intervals: Efron & Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13. An interval says how far the score depends on which samples it is of. It says
nothing of other seeds of a training.

A score is here a function of counts (N,), how often each sample was drawn: counts of one give the score itself, and counts of zero
and one that of a subset. Draws are seeded: the same evaluation has the same intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Statistic = Callable[[np.ndarray], float]
"""A score from the counts (N,), fp64, of the samples; NaN where the counts leave nothing to score."""

RESAMPLES = 1000  # as many as 95 % percentiles are commonly taken from
FEWEST = 200
DRAWS = 10**8  # samples drawn in all: more would take minutes
LEVEL = 95.0
SEED = 0


def mean(values: Sequence[float] | np.ndarray) -> Statistic:
    """The mean of a value (N,) of each sample."""
    return ratio(values, np.ones(len(values)))


def ratio(numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray) -> Statistic:
    """The sum of one value (N,) of the samples over the sum of another (N,)."""
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)

    def value(counts: np.ndarray) -> float:
        total = float(counts @ below)
        return float(counts @ above) / total if total else math.nan

    return value


def median(values: np.ndarray, of_sample: np.ndarray) -> Statistic:
    """The median of values (V,), which come in by samples: `of_sample` (V,) says whose each is."""

    def value(counts: np.ndarray) -> float:
        drawn = np.repeat(values, counts[of_sample].astype(int))
        return float(np.median(drawn)) if len(drawn) else math.nan

    return value


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The plain mean of several scores of the same samples."""
    return lambda counts: sum(statistic(counts) for statistic in statistics) / len(statistics)


def within(statistic: Statistic, samples: slice) -> Statistic:
    """A score of some of the samples, which lie side by side."""
    return lambda counts: statistic(counts[samples])


def resamples(samples: int) -> int:
    """How many times so many samples are drawn anew."""
    return max(FEWEST, min(RESAMPLES, DRAWS // max(1, samples)))


def intervals(
    statistics: Mapping[str, Statistic], strata: Sequence[int], seed: int = SEED
) -> dict[str, tuple[float, float]]:
    """The interval that holds the middle `LEVEL` percent of each score's values over resamples.

    Args:
        statistics: the scores, by name.
        strata: sizes of the sets of samples, one after the other, each of which is drawn from by itself.
        seed: seed of the draws, which all scores share.

    Returns:
        By name the lower and the upper end. Nothing where a set has a single sample, which tells nothing of others.
    """
    if not statistics or not strata or min(strata) < 2:
        return {}
    generator = np.random.default_rng(seed)
    values: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(resamples(sum(strata))):
        drawn = [np.bincount(generator.integers(size, size=size), minlength=size) for size in strata]
        counts = np.concatenate(drawn).astype(float)
        for name, statistic in statistics.items():
            values[name].append(statistic(counts))
    outside = (100 - LEVEL) / 2
    ends = {
        name: np.percentile(known, [outside, 100 - outside])
        for name, found in values.items()
        if len(known := [value for value in found if not math.isnan(value)])
    }
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}
