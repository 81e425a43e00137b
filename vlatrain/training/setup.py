"""From a configuration to samples, a backbone with its adapters, and a task: what training, evaluation and prediction share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import PROCESSOR, load
from vlatrain.config import TrainConfig
from vlatrain.data.sample import Sample
from vlatrain.injection.attach import attach, restore
from vlatrain.tasks import Task, build

ADAPTER = "adapter"  # folder in a run that holds what was trained


@dataclass
class Bench:
    """Everything a run works with.

    Attributes:
        backbone: the frozen backbone, adapters in it.
        model: the same model as the method returns it (a `PeftModel` for adapters): what is trained and saved.
        task: the task on the backbone.
    """

    backbone: Backbone
    model: nn.Module
    task: Task


def fresh(config: TrainConfig, train: Sequence[Sample], run: Path | None = None) -> Bench:
    """A backbone with new adapters, for training.

    Args:
        config: the configuration.
        train: training samples: what a random backbone's tokenizer and an answer list are made from.
        run: a run folder whose tokenizer is used where there is one (resuming).

    Raises:
        UserError: the weights cannot be had, or the points select nothing.
    """
    where = sites(config.model, config.task.name, config.points)  # before the weights: a typo must not wait for them
    backbone = load(config.model, config.task.name, texts=texts_of(train), seed=config.seed, run=run)
    model = attach(backbone.model, config.adapter, where)
    return Bench(backbone, model, build(config.task, backbone, train))


def finished(config: TrainConfig, run: Path) -> Bench:
    """A backbone with a finished run's adapters, for inference.

    Raises:
        UserError: the weights or the adapter cannot be had.
    """
    backbone = load(config.model, config.task.name, seed=config.seed, run=run)
    model = restore(backbone.model, config.adapter, run / ADAPTER)
    model.requires_grad_(False).eval()
    return Bench(backbone, model, build(config.task, backbone))


def keep_processor(bench: Bench, run: Path) -> None:
    """Keep a random backbone's tokenizer in the run: nothing else could bring it back."""
    if bench.backbone.config.random_init:
        bench.backbone.tokenizer.save_pretrained(run / PROCESSOR)


def texts_of(samples: Sequence[Sample]) -> list[str]:
    """Every text of the samples."""
    return [text for sample in samples for text in (sample.question, *sample.answers, *sample.captions) if text]
