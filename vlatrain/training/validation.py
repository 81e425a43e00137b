"""What an evaluation adds to a task's scores: the loss on the same samples, and the frozen model beside the trained one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from vlatrain.data.sample import Sample
from vlatrain.tasks.base import Batch, Batches, Task
from vlatrain.training.rng import seeded_cpu


def mean_loss(task: Task, samples: Sequence[Sample], batches: Batches) -> float:
    """The task's loss on samples: the mean over the batches, each weighted by its samples.

    What a batch draws at random (wrong pairs) depends on its samples alone, so that the loss is the same at every evaluation of the
    same weights, and with any number of processes. The generators are not as they were before: see `rng.preserved`.

    Args:
        task: the task, its model in eval mode.
        samples: the samples.
        batches: goes through them.
    """

    def collate(some: Sequence[Sample]) -> Batch:
        with seeded_cpu(_seed([sample.id for sample in some])):
            return task.collate(some)

    def summed(batch: Batch) -> float:
        torch.manual_seed(_seed(batch["ids"]))  # of the device, too: hard negatives are drawn there
        return float(task.loss(batch).detach()) * len(batch["ids"])

    return sum(batches(samples, collate, summed)) / len(samples)


def _seed(ids: Sequence[str | int]) -> int:
    return zlib.crc32(repr([str(own) for own in ids]).encode())


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """A model without what was put into it, for the time of the context; one into which nothing was put as it is.

    What trains is called so within, too, lest anyone takes what is computed here for settled.
    """
    disable = getattr(model, "disable_adapter", None)
    if disable is None:
        yield
        return
    training = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for parameter, trains in training:
            parameter.requires_grad_(trains)

    with disable():
        restore()  # PEFT switches it off with the adapters
        yield
    restore()  # and on for all that is in them, what a method keeps frozen too
