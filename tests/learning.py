"""Training in tests without the loop: some steps on one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vlatrain.data.sample import Sample
from vlatrain.tasks import Task


def overfit(task: Task, samples: Sequence[Sample], steps: int, lr: float, until: float = -math.inf) -> float:
    """Train what is trainable on samples as one batch, with Adam, at most until the loss is below `until`.

    Returns:
        The loss of the last step.
    """
    optimizer = torch.optim.Adam([p for p in task.backbone.model.parameters() if p.requires_grad], lr=lr)
    batch = task.collate(samples)
    loss = torch.tensor(math.nan)
    for _ in range(steps):
        loss = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < until:
            break
    return loss.item()
