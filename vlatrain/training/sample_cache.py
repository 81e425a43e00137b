"""Designs that keep training samples (Tip-Adapter): which, and what of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from vlatrain.config import TrainConfig
from vlatrain.data.sample import Sample
from vlatrain.tasks import Batch
from vlatrain.training.batches import SharedBatches
from vlatrain.training.display import Display
from vlatrain.training.precision import choose_device, own
from vlatrain.training.setup import TrainingSetup

log = logging.getLogger("vlatrain")


@runtime_checkable
class Cache(Protocol):
    """A module that keeps so many training samples, as features."""

    size: int

    def store(self, keys: Tensor, values: Tensor) -> None:
        """Take (size, width) unit image features, and what is added to features like them."""
        ...


class Paired(Protocol):
    """A task whose training samples have features of an image, and something to add to such: its caption's, or its class's."""

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both, (B, width) each, of a training batch whose samples have at most one caption."""
        ...


def build_sample_cache(setup: TrainingSetup, samples: Sequence[Sample], config: TrainConfig, display: Display) -> None:
    """Fill what the model's design keeps with a seeded draw of training samples. Most designs keep nothing.

    Args:
        setup: the model, before its training.
        samples: training samples.
        config: the configuration.
        display: where progress is shown.
    """
    caches = [module for module in setup.model.modules() if isinstance(module, Cache)]
    if not caches:
        return
    chosen = drawn(samples, max(cache.size for cache in caches), config.seed)
    log.info("Filling the cache with %s of %s training samples", f"{len(chosen):,}", f"{len(samples):,}")
    device = own(choose_device(config.trainer.device))
    setup.model.to(device).eval()
    task = cast(Paired, setup.task)
    batches = SharedBatches(
        device, 2 * config.trainer.samples_per_pass, config.trainer.loaders, display, "filling the cache"
    )
    with torch.no_grad():
        found = [*batches(chosen, setup.task.collate, task.pairs)]
    keys, values = [torch.cat(parts).cpu() for parts in zip(*found, strict=True)]  # (size, width) each
    for cache in caches:
        cache.store(keys[: cache.size], values[: cache.size])


def drawn(samples: Sequence[Sample], size: int, seed: int) -> list[Sample]:
    """So many samples, with one caption each if they have captions. Fewer samples are taken several times, each time with the next
    caption."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = []
    for number in range(size):
        turn, place = divmod(number, len(order))
        sample = samples[order[place]]
        captions = sample.captions and (sample.captions[turn % len(sample.captions)],)
        chosen.append(replace(sample, captions=captions))
    return chosen
