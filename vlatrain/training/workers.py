"""How many processes load the data: by what a pass takes to load, and how many cores there are."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence

import torch

from vlatrain.config import TrainerConfig
from vlatrain.data.sample import Sample
from vlatrain.tasks import Task
from vlatrain.training import rng
from vlatrain.training.processes import neighbours

log = logging.getLogger("vlatrain")

TIMED = 16  # samples that are loaded to see what it takes
PASS = 0.02  # seconds that a GPU takes for a pass, or more: so often one must be loaded
LITTLE = 0.002  # seconds: a pass that takes less is loaded while the GPU computes, and processes would cost more
MOST = 16  # processes


def cores() -> int:
    """The cores that this process may use, its share of those of the machine where several of its training run there."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, able // len(neighbours()))


def choose_workers(
    trainer: TrainerConfig, task: Task, samples: Sequence[Sample], size: int, device: torch.device
) -> int:
    """The data-loading processes of `trainer.workers`; auto: on a CPU none, as its cores compute; else by loading a few samples.

    Args:
        trainer: the settings of the loop.
        task: the task, whose `collate` loads.
        samples: the samples, some of which are loaded.
        size: samples of a pass.
        device: where the passes are computed.
    """
    if isinstance(trainer.workers, int):
        return trainer.workers
    if device.type == "cpu" or not samples:
        return 0
    some = samples[:: max(1, len(samples) // TIMED)][:TIMED]
    with rng.preserved():
        task.collate(some[:1])  # what the first one takes is no measure
        started = time.perf_counter()
        task.collate(some)
        seconds = (time.perf_counter() - started) / len(some) * size
    chosen = workers_for(seconds, cores())
    log.info("Workers: %d; a pass takes %.0f ms to load", chosen, 1000 * seconds)
    return chosen


def workers_for(seconds: float, cores: int) -> int:
    """The processes that load passes as fast as a GPU takes them, as far as there are cores, one of which it needs itself.

    Args:
        seconds: that one process takes for a pass.
        cores: that there are.
    """
    return 0 if seconds < LITTLE else min(math.ceil(seconds / PASS), MOST, max(1, cores - 1))
