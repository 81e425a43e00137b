"""Designs that keep training samples (Tip-Adapter, nearest neighbours): which, and what of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from vlatrain.config import TrainConfig, UserError
from vlatrain.data.sample import Sample
from vlatrain.tasks import Batch
from vlatrain.training.batches import SharedBatches
from vlatrain.training.display import Display
from vlatrain.training.precision import autocast, choose_device, choose_precision, own
from vlatrain.training.setup import TrainingSetup

log = logging.getLogger("vlatrain")


@runtime_checkable
class Cache(Protocol):
    """A module that keeps so many training samples, as features."""

    size: int
    balanced: bool

    def store(self, keys: Tensor, values: Tensor) -> None:
        """Take (size, width) unit image features, and what is added to features like them, or voted for."""
        ...


class Paired(Protocol):
    """A task whose training samples have features of an image, and something to add to such: its caption's, or its class's."""

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both, (B, width) each, of a training batch whose samples have at most one caption."""
        ...


def build_sample_cache(setup: TrainingSetup, samples: Sequence[Sample], config: TrainConfig, display: Display) -> None:
    """Fill what the model's design keeps with a seeded draw of training samples, in the precision of what will be compared with it.
    Most designs keep nothing.

    Args:
        setup: the model, before its training.
        samples: training samples.
        config: the configuration.
        display: where progress is shown.

    Raises:
        UserError: it keeps something, and no process has the whole model (`trainer.shard`).
    """
    caches = [module for module in setup.model.modules() if isinstance(module, Cache)]
    if not caches:
        return
    if config.trainer.shard:
        raise UserError(
            f"trainer.shard=true and adapter={config.adapter.name}: what it keeps of training samples is computed by the whole "
            "model in each process; choose another adapter"
        )
    size = max(cache.size for cache in caches)
    chosen = drawn(samples, size, config.seed, caches[0].balanced)
    each = sorted(Counter(sample.label for sample in chosen).values())
    number = " to ".join(str(count) for count in dict.fromkeys((each[0], each[-1])))
    by_class = f", {number} of each class" if chosen[0].label else ""
    log.info("Filling the cache with %s of %s training samples%s", f"{len(chosen):,}", f"{len(samples):,}", by_class)
    device = own(choose_device(config.trainer.device))
    setup.model.to(device).eval()
    task = cast(Paired, setup.task)
    batches = SharedBatches(
        device, 2 * config.trainer.samples_per_pass, config.trainer.loaders, display, "filling the cache"
    )
    with torch.no_grad(), autocast(device, choose_precision(config.trainer.precision, device)):
        found = [*batches(chosen, setup.task.collate, task.pairs)]
    keys, values = [torch.cat(parts).float().cpu() for parts in zip(*found, strict=True)]  # (size, width) each
    for cache in caches:
        cache.store(keys[: cache.size], values[: cache.size])


def drawn(samples: Sequence[Sample], size: int, seed: int, balanced: bool = True) -> list[Sample]:
    """So many samples, with one caption each if they have captions. If balanced, of samples with labels as many of each class, to
    one; fewer samples are taken several times, each time with the next caption."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    if not balanced:
        return [samples[place] for place in sorted(order[:size])]
    classes: dict[str, list[int]] = {}
    for place in order:
        classes.setdefault(samples[place].label, []).append(place)
    in_turn = list(classes.values())
    chosen = []
    for number in range(size):
        round_, of_class = divmod(number, len(in_turn))
        turn, place = divmod(round_, len(in_turn[of_class]))
        sample = samples[in_turn[of_class][place]]
        captions = sample.captions and (sample.captions[turn % len(sample.captions)],)
        chosen.append(replace(sample, captions=captions))
    return chosen
