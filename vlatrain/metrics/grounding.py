"""How well boxes fit: IoU and generalised IoU, accuracy at a threshold, mean IoU, average precision.

- IoU: the area that two boxes share over the area that they cover together (Everingham et al., "The PASCAL Visual Object Classes
  (VOC) Challenge", IJCV 2010, section 4.2). GIoU subtracts the share of the smallest box around both that neither covers
  (Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, algorithm 1).
- Accuracy at 0.5: the share of expressions whose box has an IoU of at least 0.5 with the reference, as on RefCOCO (Yu et al.,
  "Modeling Context in Referring Expressions", ECCV 2016, counts above 0.5; MDETR and TransVG at least 0.5, as here).
- AP at 0.5: the area under precision over recall, precision made monotone, over all its points, as in the VOC development kit since
  2010. Each prediction, the surest first, takes the reference that it fits best; one that is taken already, or that fits less than
  0.5, makes it a false one (Everingham et al., section 4.2). All samples count as one class here. Equally sure ones come in the
  order of the samples.

A box is left, top, right, bottom, in units that are the same for both; IoU, and so all scores, are the same in pixels and in
shares of the image. A sample without a predicted box has an IoU of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlatrain.metrics.bootstrap import Statistic, mean

Box = tuple[float, float, float, float]
LEVELS = {"accuracy": 0.5, "accuracy_75": 0.75}


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (...) of boxes (..., 4) with others (..., 4), which broadcast; 0 where both are empty."""
    shared, union, _ = _areas(boxes, others)
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU (...), from -1 to 1, see `iou`."""
    shared, union, around = _areas(boxes, others)
    least = torch.finfo(union.dtype).eps  # differentiable where boxes have no area
    return shared / union.clamp(min=least) - (around - union) / around.clamp(min=least)


def _areas(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of what boxes share, of what they cover together, and of the smallest box around both."""
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    least, most = torch.minimum(boxes[..., :2], others[..., :2]), torch.maximum(boxes[..., 2:], others[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = _area(boxes) + _area(others) - shared
    return shared, union, (most - least).clamp(min=0).prod(dim=-1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


@dataclass(frozen=True)
class Scores:
    """The scores of predicted boxes, in percent.

    Attributes:
        metrics: by name.
        per_sample: of each sample the IoU of its first box with the reference that it fits best.
        statistics: the scores as functions of how often each sample was drawn.
    """

    metrics: dict[str, float]
    per_sample: list[float]
    statistics: dict[str, Statistic]


def score(
    predicted: Sequence[Sequence[tuple[Box, float]]], references: Sequence[Sequence[Box]], several: bool
) -> Scores:
    """The scores of predicted boxes.

    Args:
        predicted: of each sample its boxes, each with how sure it is, the surest first; none: nothing was found, or nothing could
            be read of what was written.
        references: of each sample its right boxes.
        several: whether samples have several boxes: then average precision is given, too.

    Raises:
        ValueError: nothing to score, or numbers that do not fit.
    """
    if not references or len(predicted) != len(references):
        raise ValueError(f"predictions for {len(predicted)} samples, references for {len(references)}")
    best = [_best(own[:1], right) for own, right in zip(predicted, references, strict=True)]
    values = {name: [100.0 * (value >= level) for value in best] for name, level in LEVELS.items()}
    values["mean_iou"] = [100.0 * value for value in best]
    statistics = {name: mean(own) for name, own in values.items()}
    if several:
        statistics["ap_50"] = average_precision(predicted, references)
    every = np.ones(len(references))
    metrics = {name: statistic(every) for name, statistic in statistics.items()}
    return Scores(metrics, best, statistics)


def _best(own: Sequence[tuple[Box, float]], right: Sequence[Box]) -> float:
    """The IoU of the first of a sample's boxes with the reference that it fits best."""
    if not own or not right:
        return float(not own and not right)  # nothing is there, and nothing was found
    return float(iou(_stacked([own[0][0]]), _stacked(right)).max())


def _stacked(boxes: Sequence[Box]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)


def average_precision(
    predicted: Sequence[Sequence[tuple[Box, float]]], references: Sequence[Sequence[Box]], level: float = 0.5
) -> Statistic:
    """Average precision in percent, see `score` for the arguments, as a function of how often each sample was drawn.

    Args:
        predicted: of each sample its boxes, the surest first.
        references: of each sample its right boxes.
        level: the IoU from which a box counts.
    """
    sure, right, sample = [], [], []
    for place, (own, there) in enumerate(zip(predicted, references, strict=True)):
        found = matched([box for box, _ in own], there, level)
        sure += [value for _, value in own]
        right += found
        sample += [place] * len(found)
    order = np.argsort(-np.asarray(sure, dtype=float), kind="stable")
    hits, of_sample = np.asarray(right, dtype=float)[order], np.asarray(sample, dtype=int)[order]
    boxes = np.array([len(there) for there in references], dtype=float)

    def value(counts: np.ndarray) -> float:
        total = float(counts @ boxes)
        if not total:
            return math.nan
        weights = counts[of_sample]
        true, all_of_them = np.cumsum(weights * hits), np.cumsum(weights)
        precision = np.divide(true, all_of_them, out=np.zeros_like(true), where=all_of_them > 0)
        monotone = np.maximum.accumulate(precision[::-1])[::-1]
        return 100.0 * float(np.diff(true, prepend=0.0) @ monotone) / total

    return value


def matched(boxes: Sequence[Box], references: Sequence[Box], level: float) -> list[bool]:
    """Of a sample's predicted boxes, the surest first, whether each is a true one."""
    if not boxes or not references:
        return [False] * len(boxes)
    fits = iou(_stacked(boxes)[:, None], _stacked(references)[None])  # (boxes, references)
    taken: set[int] = set()
    found = []
    for own in fits:
        place = int(own.argmax())
        found.append(float(own[place]) >= level and place not in taken)
        if found[-1]:
            taken.add(place)
    return found


def mean_box(boxes: Sequence[Box]) -> Box:
    """The box of the mean centre and the mean sides of some."""
    rows = np.asarray(boxes, dtype=float)
    left, top, right, bottom = rows.mean(axis=0)  # centre and sides are linear in the edges
    return float(left), float(top), float(right), float(bottom)


CENTRE: Box = (0.25, 0.25, 0.75, 0.75)
"""The box in the middle of the image with half of its sides, in shares of the image."""
