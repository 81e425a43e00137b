"""The baselines in a `metrics.json`: which is the one to beat, and whether a score is above it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLOSE = 1e-9  # scores that differ by no more are equal: sums in another order


@dataclass(frozen=True)
class Beaten:
    """A score beside the best of the baselines.

    Attributes:
        name: the baseline's, as words.
        value: what it scores.
        says: what it predicts.
        better: whether the score is better.
    """

    name: str
    value: float
    says: str
    better: bool


def beside_baseline(scored: Mapping[str, Any], metric: str, higher_is_better: bool = True) -> Beaten | None:
    """A score beside the best baseline that has one; None where none has, as in a run of before.

    Args:
        scored: the content of a `metrics.json`, or what it holds for another split.
        metric: name of the score.
        higher_is_better: whether more of it is better.
    """
    score = (scored.get("metrics") or {}).get(metric)
    sign = 1 if higher_is_better else -1
    known = {
        name: baseline
        for name, baseline in (scored.get("baselines") or {}).items()
        if metric in baseline.get("metrics", {})
    }
    if score is None or not known:
        return None
    name = max(known, key=lambda name: sign * known[name]["metrics"][metric])
    value = float(known[name]["metrics"][metric])
    words = name.rpartition("/")[2].replace("_", " ")
    return Beaten(words, value, str(known[name].get("says", "")), sign * (score - value) > CLOSE)
