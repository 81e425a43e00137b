"""Stopping a job of a sweep that is behind the others, by the median rule: Optuna's `MedianPruner`, of whatever launcher's jobs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlatrain.runs import Run
from vlatrain.runs.sweep import SweepFolder

STARTUP = 4  # jobs that must have been evaluated at a step before another is stopped there


def behind(own: Mapping[int, float], others: Sequence[Mapping[int, float]], step: int) -> bool:
    """Whether a job's best score up to a step is worse than the median of the other jobs' scores at that step.

    Args:
        own: the job's scores by step, more is better; that of the step among them.
        others: those of the other jobs.
        step: the step.
    """
    there = [scores[step] for scores in others if step in scores]
    return len(there) >= STARTUP and max(own.values()) < statistics.median(there)


class MedianRule:
    """Whether a training is to be stopped, by what the other jobs of its sweep have written into their run folders.

    Args:
        sweep: the sweep's folder.
        run: the training's own folder.
        metric: the headline metric.
    """

    def __init__(self, sweep: Path, run: Path, metric: str) -> None:
        self.sweep, self.run, self.key = SweepFolder(sweep), run, f"eval/{metric}"

    def __call__(self, step: int) -> bool:
        """Whether it is behind at a step at which it has just been evaluated."""
        folders = {outcome.folder for outcome in self.sweep.all() if outcome.folder is not None} - {self.run}
        return behind(self._scores(self.run), [self._scores(folder) for folder in folders], step)

    def _scores(self, folder: Path) -> dict[int, float]:
        return {int(record["step"]): float(record[self.key]) for record in Run(folder).history if self.key in record}
