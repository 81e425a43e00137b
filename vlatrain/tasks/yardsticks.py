"""What a score is compared with: baselines that see no image, the best that data allows, and scores of groups of samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlatrain.metrics.bootstrap import Statistic
from vlatrain.metrics.caption_constant import BestCaption

GROUPS = 1000  # groups of a kind that are scored: an ImageNet's classes, but not a column of ids
WORDS = (5, 10, 15)  # the most words of questions of a length


@dataclass(frozen=True)
class Baseline:
    """What needs no model scores on some samples.

    Attributes:
        metrics: scores by name, as the task has them.
        says: what it predicts, in words.
    """

    metrics: dict[str, float]
    says: str


@dataclass(frozen=True)
class Yardsticks:
    """What scores on some samples are compared with, whatever the model.

    Attributes:
        baselines: by name, with underscores for blanks.
        ceilings: the most that some scores can reach with these references.
        facts: what else is known of the references, as JSON values.
        described: what there is to say of the ceilings, a sentence each.
    """

    baselines: dict[str, Baseline] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    described: list[str] = field(default_factory=list)

    def of_subtask(self, subtask: str) -> Yardsticks:
        """The same, with the name of a subtask in front of all names."""
        return Yardsticks(
            {
                f"{subtask}/{name}": Baseline(_named(subtask, found.metrics), found.says)
                for name, found in self.baselines.items()
            },
            _named(subtask, self.ceilings),
            _named(subtask, self.facts),
            [f"Subtask {subtask}: {sentence}" for sentence in self.described],
        )


@dataclass(frozen=True)
class Grouping:
    """Samples in groups: by question type, class or length.

    Attributes:
        values: of each sample the name of its group; None: it has none.
        metrics: the scores that are given for each group.
    """

    values: Sequence[str | None]
    metrics: Sequence[str]


def _named(subtask: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{subtask}/{name}": value for name, value in values.items()}


def question_lengths(questions: Sequence[str]) -> list[str]:
    """Of each question the range that its number of words is in: 1-5, 6-10, 11-15 or over 15."""
    lengths = [len(question.split()) for question in questions]
    starts = [1, *(most + 1 for most in WORDS)]
    return [
        next(
            (f"{start}-{most}" for start, most in zip(starts, WORDS, strict=False) if length <= most), f"{starts[-1]}+"
        )
        for length in lengths
    ]


def by_group(groupings: Mapping[str, Grouping], statistics: Mapping[str, Statistic]) -> dict[str, Any]:
    """The scores of each group, by grouping and group, the largest group first, as JSON values with its number of samples.

    Groups beyond the `GROUPS` largest are not scored, only counted. A grouping of one group says nothing that the
    whole does not, and is left out.
    """
    scored: dict[str, Any] = {}
    for name, grouping in groupings.items():
        sizes = Counter(value for value in grouping.values if value is not None)
        if len(sizes) < 2:
            continue
        shown = sizes.most_common(GROUPS)
        number = {group: place for place, (group, _) in enumerate(shown)}
        numbers = np.array([-1 if value is None else number.get(value, -1) for value in grouping.values])
        scored[name] = {
            group: {"samples": size, **_scores(numbers == number[group], grouping.metrics, statistics)}
            for group, size in shown
        }
        if beyond := sizes.total() - sum(size for _, size in shown):
            scored[name][f"{len(sizes) - GROUPS:,} smaller groups"] = {"samples": beyond}
    return scored


def _scores(chosen: np.ndarray, metrics: Sequence[str], statistics: Mapping[str, Statistic]) -> dict[str, float]:
    found = {name: statistics[name](chosen.astype(float)) for name in metrics if name in statistics}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def of_constant(best: BestCaption) -> str:
    """What the best constant caption says, and among how many it was best."""
    said = f"always {best.text!r}"
    if best.tried < best.captions or best.images < best.of:
        said += f" (the best of {best.tried:,} of {best.captions:,} captions on {best.images:,} of {best.of:,} images)"
    return said
