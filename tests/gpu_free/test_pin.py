"""Every batch can be pinned, on its way to a GPU: of images, and of kept states in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import adapter_config, make_samples
from tests.gpu_free.families import NAMES, config_of, set_up, task_of
from vlatrain.backbones.describe import sites
from vlatrain.config import TrainConfig, TrainerConfig
from vlatrain.data.sample import Sample
from vlatrain.injection.attach import attach
from vlatrain.tasks import Task
from vlatrain.tasks.base import Batch, Collate
from vlatrain.training.display import SILENT
from vlatrain.training.prefix_cache.compute import cache_prefix

CALLS = [*((name, "") for name in NAMES), ("llava", "instruct"), ("clip+gpt2", "instruct"), ("clip+gpt2", "captioning")]


class Enough(Exception):  # noqa: N818, no error
    """The batch has been seen."""


def pin(value: Any) -> None:
    """As torch pins: every tensor into memory of its own, laid out as it is. One that lies on itself cannot be written so."""
    if isinstance(value, Tensor):
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value)
    elif isinstance(value, dict):
        pin(list(value.values()))
    elif dataclasses.is_dataclass(value):
        pin(list(vars(value).values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            pin(item)


def pin_all(task: Task) -> Batch:
    """Pin a batch to train on and the first one to evaluate on; the former is returned."""

    def batches(samples: Sequence[Sample], collate: Collate, compute: Any) -> Iterator[Any]:
        pin(collate(samples[:3]))
        raise Enough

    batch = task.collate(make_samples()[:3])
    pin(batch)
    with pytest.raises(Enough):
        task.evaluate(make_samples(), batches)
    return batch


@pytest.mark.parametrize(("name", "asked"), CALLS)
def test_batches_can_be_pinned_kept_and_not(name: str, asked: str) -> None:
    backbone, settings = set_up(config_of(name), asked)
    served = backbone.config.tasks[settings.name]
    ends = [f"{tower}.last1.*" for tower in served.output_towers]
    attach(backbone.model, adapter_config("bottleneck", dim=2), sites(backbone.config, settings.name, ends))
    task = task_of(backbone, settings)
    pin_all(task)
    config = TrainConfig(task=settings, model=backbone.config, trainer=TrainerConfig(cache="memory", batch_size=4))
    cache = cache_prefix(backbone, config, {"train": make_samples()}, {"train": 3.0}, "fp32", SILENT)
    assert (cache is not None) == any(served.cacheable_inputs.values())
    if cache is None:
        return
    losses = []
    for prefix in (cache, None):
        backbone.cache = prefix
        batch = pin_all(task)
        torch.manual_seed(0)  # matching draws its negatives
        with torch.no_grad():
            losses.append(task.loss(batch))
    torch.testing.assert_close(*losses)
