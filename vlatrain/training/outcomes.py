"""What steps came to, loss and gradient norm, read without the host waiting for a GPU.

A host that reads a number waits until the device has computed it, and meanwhile gives it nothing to do. On a GPU the numbers of a
step are therefore on their way while the next step is given to the device, and are read then. Until they have been seen, the device
itself sees to it that a step whose loss or gradient is not finite, and whatever follows it, changes no weights: the fused optimizer
leaves out a step that it finds `found_inf` set for.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlatrain.config import UserError
from vlatrain.training.processes import gather

log = logging.getLogger("vlatrain")


@dataclass
class Outcome:
    """What a step came to.

    Attributes:
        step: its number, from 1.
        values: (3,) loss, signal (0: none) and gradient norm, on the host once `ready`.
        losses: of its passes, on the device.
        ids: of the samples of each pass.
        ready: the event after which the values are there; None: they are.
    """

    step: int
    values: Tensor
    losses: list[Tensor]
    ids: list[list[str]]
    ready: Any = None

    def read(self) -> tuple[float, float, float]:
        """Loss, signal and gradient norm."""
        if self.ready is not None:
            self.ready.synchronize()
        loss, signal, norm = self.values.tolist()
        return loss, signal, norm


class Outcomes:
    """The outcomes of steps that have not been read.

    Attributes:
        late: whether they may be read a step late.

    Args:
        optimizer: the fused optimizer; None: nothing is trained.
        late: see above.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None, late: bool) -> None:
        self.optimizer, self.late = optimizer, late
        self.waiting: deque[Outcome] = deque()
        self.broken: Tensor | None = None  # on the device: 1 once a step was not finite

    def add(self, outcome: Outcome) -> None:
        """Take a step's, with values on the device, before the optimizer's step."""
        if self.late:
            broken = (~outcome.values.isfinite()).any().float()
            self.broken = broken if self.broken is None else torch.maximum(self.broken, broken)
            self.optimizer.found_inf = self.broken  # type: ignore[union-attr]
            if outcome.values.device.type == "cuda":
                outcome.values = outcome.values.to("cpu", non_blocking=True)
                outcome.ready = torch.cuda.Event()
                outcome.ready.record()
        self.waiting.append(outcome)

    def due(self, everything: bool) -> list[Outcome]:
        """Those that are to be read now, the earliest first: all, or all but the last step's where they may be late."""
        kept = 0 if everything or not self.late else 1
        return [self.waiting.popleft() for _ in range(len(self.waiting) - kept)]


def not_finite(outcome: Outcome, loss: float, norm: float) -> UserError:
    """The error that names the samples of a step whose loss or gradient is not finite. Every process calls it."""
    lost, passes = not math.isfinite(loss), zip(outcome.losses, outcome.ids, strict=True)
    named = gather([name for own, ids in passes if not (lost and torch.isfinite(own)) for name in ids])
    suspects = [name for names in named for name in names]
    what = "the loss is" if lost else "the gradient is"
    log.error("Step %d: %s not finite; samples: %s", outcome.step, what, ", ".join(suspects))
    names = ", ".join(suspects[:20]) + (f", ... ({len(suspects)} in all, in run.log)" if len(suspects) > 20 else "")
    return UserError(
        f"step {outcome.step}: {what} not finite ({loss if lost else norm}), with the samples {names}. The weights are unchanged. "
        "Look at these samples, or lower optim.lr, or use trainer.precision=fp32"
    )
