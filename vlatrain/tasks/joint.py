"""Joint training: batches of samples of several tasks, each with its own loss and its own scores.

A batch is grouped by subtask, each group goes through its own task, and the loss is the mean over all samples of the batch. While a
group is computed, the model's context holds the name of its subtask, which task-specific adapters read
(`vlatrain.injection.context`).

The headline metric `mean` is the plain mean of the subtasks' own, as papers on several tasks report it (Sung, Cho, Bansal,
"VL-Adapter", CVPR 2022). CIDEr-D goes up to 1000, so a captioning subtask can outweigh the others; `task.metric=SUBTASK/METRIC`
chooses the best checkpoint by a single score instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlatrain.backbones.base import Backbone
from vlatrain.config import TaskConfig
from vlatrain.config.joint import MEAN
from vlatrain.data.sample import Sample
from vlatrain.injection.context import for_task
from vlatrain.metrics.bootstrap import Statistic, mean_of, within
from vlatrain.tasks.base import Batch, Batches, Evaluation, Task
from vlatrain.tasks.yardsticks import Baseline, Grouping, Yardsticks


class JointBatch(Batch):
    """Samples of several tasks.

    Attributes:
        subtasks: the batch of each subtask, by its name.
    """

    subtasks: dict[str, Batch]


class Joint(Task):
    """Several tasks on one backbone.

    Args:
        config: its settings.
        backbone: the backbone.
        subtasks: the tasks, by the name of the subtask.
    """

    def __init__(self, config: TaskConfig, backbone: Backbone, subtasks: Mapping[str, Task]) -> None:
        super().__init__(replace(config, subtasks={name: task.config for name, task in subtasks.items()}), backbone)
        self.subtasks = dict(subtasks)

    def learned(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those that the subtasks learn from, in their order."""
        return [sample for sample in samples if self.subtasks[sample.subtask].learned([sample])]

    def collate(self, samples: Sequence[Sample]) -> JointBatch:
        """The batch of each subtask that has samples, by its name."""
        grouped = self._grouped(samples)
        return {
            "ids": [sample.id for own in grouped.values() for sample in own],
            "subtasks": {name: self.subtasks[name].collate(own) for name, own in grouped.items()},
        }

    def loss(self, batch: JointBatch) -> Tensor:
        """The subtasks' losses, each weighted by its share of the samples: the mean over all samples."""
        losses = []
        for name, own in batch["subtasks"].items():
            with for_task(self.backbone.model, name):
                losses.append(self.subtasks[name].loss(own) * (len(own["ids"]) / len(batch["ids"])))
        return torch.stack(losses).sum()

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Each subtask on its own samples: its scores as `subtask/score`, and the mean of the headline metrics."""
        metrics: dict[str, float] = {}
        settings: dict[str, Any] = {}
        predictions: list[dict[str, Any]] = []
        evaluations: dict[str, Evaluation] = {}
        for name, own in self._grouped(samples).items():
            with for_task(self.backbone.model, name):
                found = self.subtasks[name].evaluate(own, batches)
            evaluations[name] = found
            metrics |= {f"{name}/{score}": value for score, value in found.metrics.items()}
            settings[name] = {"task": self.subtasks[name].name, "samples": len(own), **found.settings}
            predictions += [{"subtask": name, **record} for record in found.predictions]
        headlines = [f"{name}/{self.subtasks[name].metric}" for name in settings]
        mean = sum(metrics[name] for name in headlines) / len(headlines)
        statistics, groupings = _side_by_side(evaluations)
        if all(name in statistics for name in headlines):
            statistics[MEAN] = mean_of([statistics[name] for name in headlines])
        return Evaluation(
            {MEAN: mean, **metrics},
            {"mean_of": headlines, "subtasks": settings},
            predictions,
            statistics,
            [size for found in evaluations.values() for size in found.strata],
            groupings,
        )

    def constants(self, train: Sequence[Sample]) -> dict[str, Any]:
        """Those of the subtasks, by the name of each."""
        return {name: self.subtasks[name].constants(own) for name, own in self._grouped(train).items()}

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """Those of the subtasks, and the mean of their best baselines."""
        whole, best = Yardsticks(), []
        for name, own in self._grouped(samples).items():
            subtask = self.subtasks[name]
            found = subtask.yardsticks(own, constants.get(name, {}))
            headline = [
                base.metrics[subtask.metric] for base in found.baselines.values() if subtask.metric in base.metrics
            ]
            best.append(max(headline, default=None))
            named = found.of_subtask(name)
            whole.baselines.update(named.baselines)
            whole.ceilings.update(named.ceilings)
            whole.facts.update(named.facts)
            whole.described.extend(named.described)
        if best and None not in best:
            known = [value for value in best if value is not None]
            whole.baselines["mean_of_baselines"] = Baseline(
                {MEAN: sum(known) / len(known)}, "each subtask's best baseline"
            )
        return whole

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """An equal share of the batch for each subtask, rounded up."""
        size = -(-batch_size // len(self.subtasks))
        losses = []
        for name, subtask in self.subtasks.items():
            with for_task(self.backbone.model, name):
                losses.append(subtask.loss_on_meta(size, device))
        return torch.stack(losses).mean()

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """One task after the other, each with whole batches."""
        for name, subtask in self.subtasks.items():
            with for_task(self.backbone.model, name):
                subtask.evaluate_on_meta(batch_size, device)

    def _grouped(self, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
        """The samples by subtask, in the order of the subtasks."""
        grouped: dict[str, list[Sample]] = {name: [] for name in self.subtasks}
        for sample in samples:
            grouped[sample.subtask].append(sample)
        return {name: own for name, own in grouped.items() if own}


def _side_by_side(evaluations: Mapping[str, Evaluation]) -> tuple[dict[str, Statistic], dict[str, Grouping]]:
    """Statistics and groupings of the subtasks over the samples of all of them, one subtask's after the other's."""
    statistics: dict[str, Statistic] = {}
    groupings: dict[str, Grouping] = {}
    total, start = sum(sum(found.strata) for found in evaluations.values()), 0
    for name, found in evaluations.items():
        end = start + sum(found.strata)
        statistics |= {f"{name}/{score}": within(value, slice(start, end)) for score, value in found.statistics.items()}
        for group, own in found.groupings.items():
            values = [*[None] * start, *own.values, *[None] * (total - end)]
            groupings[f"{name}/{group}"] = Grouping(values, [f"{name}/{score}" for score in own.metrics])
        start = end
    return statistics, groupings
