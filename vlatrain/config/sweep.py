"""Configuration of what the jobs of a sweep have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from vlatrain.config.limits import Choice


@dataclass(frozen=True)
class Figure:
    """What a run costs, beside what it scores.

    Attributes:
        group: where it stands in `metrics.json`.
        key: its name there.
        higher_is_better: its direction.
    """

    group: str
    key: str
    higher_is_better: bool = False


#: What a sweep may go by beside a task's metrics.
FIGURES = {
    "trainable_percent": Figure("parameters", "percent"),
    "samples_per_s": Figure("speed", "samples_per_s", higher_is_better=True),
    "peak_mb": Figure("memory", "peak_mb"),
    "wall_s": Figure("speed", "wall_s"),
}


@dataclass
class SweepConfig:
    """What the jobs of a sweep (`-m`) have in common.

    Attributes:
        objectives: what a sweeper that searches goes by: metrics of the task, `trainable_percent`, `samples_per_s`, `peak_mb`,
            `wall_s`; empty: the headline metric.
        prune: `median` stops a job whose best evaluation is worse than the median of the other jobs' at the same step; null: none.
    """

    objectives: list[str] = field(default_factory=list)
    prune: Annotated[str | None, Choice("median")] = None
