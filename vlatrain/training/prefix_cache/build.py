"""Computing what is kept of samples: workers load and process the images, the device runs the frozen layers, in large batches."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vlatrain.backbones.base import Backbone, Inputs, Text
from vlatrain.backbones.prefix import Enough, PrefixReplay
from vlatrain.data.lazy import select
from vlatrain.data.sample import Sample
from vlatrain.tasks.sample_checks import images_named
from vlatrain.training.batches import PREFETCH, batches_by
from vlatrain.training.display import Track
from vlatrain.training.precision import autocast

if TYPE_CHECKING:
    from vlatrain.training.prefix_cache.compute import PrefixCache

MOST = 64  # samples that keep a GPU busy; more gain nothing
DEVICE_BYTES = 2e9  # that a batch may need on a GPU, besides the weights
HOST_BYTES = 1e9  # that loaded batches may take in memory
SHARED = "/dev/shm"  # where workers put what they have loaded; in a container it often has 64 MB


class Builder:
    """Computes what is kept of samples.

    Args:
        backbone: on its device, in eval mode.
        replay: how it is recorded.
        precision: fp32, bf16 or fp16.
        asks: whether the task puts questions.
        types: by tower, the type its states are kept in, if not that in which they are computed.
    """

    def __init__(
        self, backbone: Backbone, replay: PrefixReplay, precision: str, asks: bool, types: Mapping[str, torch.dtype]
    ) -> None:
        self.backbone, self.prefix_replay, self.precision = backbone, replay, precision
        self.asks, self.types = asks, types

    def asked(self, sample: Sample) -> bool:
        """Whether a question about a sample is put."""
        return bool(sample.question) and self.asks

    def build(self, cache: PrefixCache, samples: Sequence[Sample], size: int, track: Track, workers: int = 0) -> None:
        """Compute the states of samples and add them to the cache's stores.

        Args:
            cache: what is kept.
            samples: the samples.
            size: samples of a batch.
            track: told of each batch.
            workers: data-loading processes.
        """
        began, done = time.perf_counter(), 0
        alike: dict[int, list[int]] = {}  # by what their questions are cut to; 0: none are asked
        for place, sample in enumerate(samples):
            alike.setdefault(cache.lengths[sample.subtask] if self.asked(sample) else 0, []).append(place)
        for length, places in sorted(alike.items()):
            part = select(samples, places)
            keys = [range(start, min(start + size, len(part))) for start in range(0, len(part), size)]
            collate = partial(loaded, self.backbone, length)
            batches = batches_by(keys, part, collate, min(workers, len(keys)), self.backbone.device)
            with closing(batches):
                for key, inputs in zip(keys, batches, strict=True):
                    self._add(cache, part[key.start : key.stop], inputs, length > 0)
                    done += len(key)
                    track.advance(len(key), speed=f"{done / (time.perf_counter() - began):,.1f} samples/s")

    def _add(self, cache: PrefixCache, samples: Sequence[Sample], inputs: Inputs, asked: bool) -> None:
        backbone, towers = self.backbone, cache.towers(asked)
        for tower in towers:
            cache.stores[tower].refresh()
        needed = [(tower, key) for tower in towers for one in samples for key in cache.keys(tower, one)]
        if all(key in cache.stores[tower] for tower, key in needed):  # another run has kept them meanwhile
            return
        backbone.prefix_replay = self.prefix_replay
        with (
            torch.no_grad(),
            autocast(backbone.device, self.precision),
            self.prefix_replay.recording(towers) as recorded,
            suppress(Enough),
        ):
            backbone.run_frozen_towers(inputs)
        backbone.prefix_replay = None
        for tower in towers:
            states = recorded[tower].states  # (B, taps, L, width)
            states = states.to(self.types.get(tower, states.dtype)).cpu()
            lengths = [states.shape[2]] * len(states)
            if "question" in cache.frontiers[tower].of:
                lengths = inputs["question"].mask.sum(dim=1).tolist()
            keys = [key for one in samples for key in cache.keys(tower, one)]
            keyed = {key: states[row, :, : lengths[row]] for row, key in enumerate(keys)}
            cache.stores[tower].add(keyed, recorded[tower].in_tuple)


def loaded(backbone: Backbone, length: int, samples: Sequence[Sample]) -> Inputs:
    """The inputs of samples, with their questions cut to so many tokens (0: none are asked). Runs in data-loading workers."""
    questions = [sample.question for sample in samples] if length else None
    images = backbone.load_all(samples)
    with images_named(backbone, samples, images):
        return backbone.inputs(images, questions, length)


def at_once(least: int, need: int, given: int, workers: int) -> int:
    """Samples of a batch of the building pass on a GPU: as many as keep it busy, within two budgets.

    One is what a batch needs on the device: without gradients the activations of one layer at a time, so it is far less than a
    training's. The other is what loaded batches take on the host, as workers load ahead, in memory that may be scarce.

    Args:
        least: samples of a pass that is known to fit.
        need: bytes that the pass of one sample needs on the device.
        given: bytes of a sample's inputs.
        workers: data-loading processes.
    """
    host = HOST_BYTES
    if workers:
        with suppress(OSError):
            host = min(host, shutil.disk_usage(SHARED).free / 2)
    ahead = PREFETCH * workers + 1
    return max(least, int(min(MOST, DEVICE_BYTES / need, host / (ahead * given))))


def size_of(inputs: Inputs) -> int:
    """Bytes of the tensors in inputs."""
    leaves = tree_leaves([vars(value) if isinstance(value, Text) else value for value in inputs.values()])
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
