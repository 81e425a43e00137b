"""Scores of a semantic segmentation, all by the pixels of the whole set, in percent.

- miou: of each class the pixels where prediction and truth both have it, over those where either has it (Everingham et al., "The
  PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010), and of these the plain mean. A class that neither has is left out;
- pixel_accuracy: the share of pixels that are right;
- mean_accuracy: the share of a class's pixels that are right, and of these the plain mean over the classes that there are.

They come of confusions (N, C, C): of each image, how many pixels of a class (row) were taken for which (column).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlatrain.metrics.bootstrap import Statistic

NAMES = ("miou", "pixel_accuracy", "mean_accuracy")


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    """The confusion (C, C) of an image; pixels whose truth is `ignore` do not count."""
    counted = truth != ignore
    places = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes)


def ious(confusions: np.ndarray) -> np.ndarray:
    """Intersection over union (C,) of each class, in percent; NaN where neither truth nor prediction has it."""
    total = confusions.reshape(-1, *confusions.shape[-2:]).sum(axis=0).astype(float)
    return _share(np.diag(total), total.sum(axis=0) + total.sum(axis=1) - np.diag(total))


def score(confusions: np.ndarray) -> dict[str, float]:
    """The scores by name.

    Raises:
        ValueError: no pixel counts.
    """
    if not confusions.sum():
        raise ValueError("confusions without a pixel")
    whole = np.ones(len(confusions))
    return {name: statistic(whole) for name, statistic in statistics(confusions).items()}


def statistics(confusions: np.ndarray) -> dict[str, Statistic]:
    """The scores as functions of how often each image was drawn."""
    right = np.diagonal(confusions, axis1=1, axis2=2).astype(float)  # (N, C)
    truth, predicted = confusions.sum(axis=2).astype(float), confusions.sum(axis=1).astype(float)  # (N, C)

    def miou(counts: np.ndarray) -> float:
        return _mean(_share(counts @ right, counts @ (truth + predicted - right)))

    def pixel_accuracy(counts: np.ndarray) -> float:
        return _mean(_share(np.atleast_1d((counts @ right).sum()), np.atleast_1d((counts @ truth).sum())))

    def mean_accuracy(counts: np.ndarray) -> float:
        return _mean(_share(counts @ right, counts @ truth))

    return dict(zip(NAMES, (miou, pixel_accuracy, mean_accuracy), strict=True))


def shares(counts: Sequence[int] | np.ndarray, classes: Sequence[str]) -> list[tuple[str, float]]:
    """The classes that pixels are of, with their shares, the largest first."""
    total = max(1, int(np.sum(counts)))
    found = [(name, int(count) / total) for name, count in zip(classes, counts, strict=True) if count]
    return sorted(found, key=lambda one: -one[1])


def _share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.divide(100.0 * above, below, out=np.full(below.shape, np.nan), where=below > 0)
    return found


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")
