"""When to evaluate: every so many steps, or so often that evaluations take a share of the time (`trainer.eval_share`).

For a share, what steps and evaluations cost is measured: at first by evaluating a few samples after a few steps, then by the
evaluations themselves. The last step's evaluation is always made; so one before it is made only if both can be paid for, and a
training too short for that has the last one alone, whatever share it takes.

What has been measured and decided is part of `Progress`: a training that continues evaluates where it would have. Each process
measures, and the first one's word counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlatrain.training.processes import from_main
from vlatrain.training.progress import Progress

TRIED_AFTER = 10  # steps before which nothing is measured: the first ones warm up
TRIED_BATCHES = 2  # batches of each process in the trial, the first of which warms up
TRIED_SHARE = 4  # the trial takes at most one of so many samples


@dataclass(frozen=True)
class EvalSchedule:
    """When to evaluate.

    Attributes:
        every: steps between evaluations, where no share is set.
        share: of the time, more than 0 and less than 1; None: `every` counts.
        total: steps of the training.
        step_size: samples of a step.
    """

    every: int
    share: float | None
    total: int
    step_size: int

    def due(self, progress: Progress) -> bool:
        """Whether there is to be an evaluation at this step, if the training is not over."""
        if self.share is not None:
            return progress.step == progress.next_evaluation
        return progress.step > 0 and progress.step % self.every == 0

    def trial_due(self, progress: Progress) -> bool:
        """Whether it is time to find out what an evaluation costs."""
        if self.share is None or progress.eval_cost is not None or not progress.timed_samples:
            return False
        return TRIED_AFTER <= progress.step < self.total

    def plan(self, progress: Progress, seconds: float, cost: float) -> None:
        """Note what an evaluation, or the trial, has taken, and decide when the next one is.

        Args:
            progress: takes the decision.
            seconds: what has been spent just now.
            cost: seconds that an evaluation takes.
        """
        progress.eval_seconds += seconds
        progress.eval_cost = cost
        if self.share is None:
            return
        step = self._next(progress) if progress.timed_samples else None
        progress.next_evaluation = from_main(step)

    def _next(self, progress: Progress) -> int | None:
        """The first step at which another evaluation keeps to the share; None: the last step's is the only one left."""
        assert self.share is not None
        assert progress.eval_cost is not None
        step_seconds = progress.timed_seconds / progress.timed_samples * self.step_size
        earned = self.share / (1 - self.share) * max(step_seconds, 1e-9)  # seconds of evaluation that a step pays for
        spent, cost = progress.eval_seconds, progress.eval_cost
        if spent + 2 * cost > earned * self.total:
            return None
        # never sooner than one pays for itself: what was not spent before is no reason for several in a row
        step = max(progress.step + math.ceil(cost / earned), math.ceil((spent + cost) / earned), progress.step + 1)
        return step if step < self.total else None


def tried(samples: int, batch_size: int, processes: int) -> tuple[int, int]:
    """What the trial evaluates.

    Args:
        samples: of an evaluation.
        batch_size: of an evaluation.
        processes: that share it.

    Returns:
        Every which sample, and how many at a time.
    """
    most = TRIED_BATCHES * processes * batch_size
    number = max(2, min(most, samples // TRIED_SHARE))
    stride = max(1, -(-samples // number))
    return stride, max(1, -(-len(range(0, samples, stride)) // (TRIED_BATCHES * processes)))
