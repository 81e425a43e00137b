"""What a router scores: its choices, its answers, and what they are compared with.

The oracle answers each sample by its own run. A sample that is sent to a run of another task counts as unanswered: of each score,
what the others score, times their share of the samples. Where samples of a task go to several models, a score is the mean of
theirs by number of samples, which is that of all for means over samples; CIDEr-D's frequencies of n-grams are then those of each
model's samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from vlatrain.adapters.router import confusion
from vlatrain.config import TaskConfig
from vlatrain.data.choices import lacking
from vlatrain.data.sample import Sample
from vlatrain.tasks import Batches, Evaluation, Task
from vlatrain.tasks.joint import Joint
from vlatrain.tasks.yardsticks import Yardsticks
from vlatrain.training.display import Display
from vlatrain.training.routing.hosts import Host, Routed
from vlatrain.training.routing.router import Router, RowBatches, worded_for

TIMED = 64  # samples by which it is measured what choosing costs

Chosen = Mapping[str, Routed]
"""What is chosen, by the sample's id."""


@dataclass
class RoutedTask:
    """A run's task as one of those that a router is scored on: its own samples, answered by whatever was chosen.

    Attributes:
        router: the router.
        name_of_run: the run.
        chosen: what was chosen for each sample.
    """

    router: Router
    name_of_run: str
    chosen: Chosen

    @property
    def own(self) -> Host:
        """The model of its own run."""
        return self.router.host_of[self.name_of_run]

    @property
    def config(self) -> TaskConfig:
        """Its settings."""
        return self.own.task.config

    @property
    def metric(self) -> str:
        """Its headline metric."""
        return self.own.task.metric

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.own.task.name

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """What its scores are compared with."""
        return self.own.task.yardsticks([worded_for(self.own, sample) for sample in samples], constants)

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Its scores, see this module."""
        passes: dict[tuple[int, bool] | None, list[Sample]] = {}
        for sample in samples:
            one = self.chosen[sample.id]
            host = self.router.host_of[one.best]
            place = (self.router.hosts.index(host), host.key(one)) if self._can_score(host, sample) else None
            passes.setdefault(place, []).append(sample)
        lost = passes.pop(None, [])
        found = [
            (self._of_pass(self.router.hosts[number], own, batches), len(own) / len(samples))
            for (number, _), own in cast("dict[tuple[int, bool], list[Sample]]", passes).items()
        ]
        names = [
            name for name in (found[0][0].metrics if found else {}) if all(name in one.metrics for one, _ in found)
        ]
        metrics = {name: sum(one.metrics[name] * share for one, share in found) for name in names}
        predictions = [record for one, _ in found for record in one.predictions]
        predictions += [{"id": sample.id, "prediction": "", "references": [], "score": 0.0} for sample in lost]
        for record in predictions:
            record["routed"] = self.chosen[record["id"]].best
        whole = found[0][0] if len(found) == 1 and not lost else None
        return Evaluation(
            metrics or {self.metric: 0.0},
            found[0][0].settings if found else {},
            predictions,
            whole.statistics if whole else {},
            whole.strata if whole else [],
            whole.groupings if whole else {},
        )

    def _of_pass(self, host: Host, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        worded = [worded_for(host, sample) for sample in samples]
        return host.task.evaluate(worded, cast(Batches, RowBatches(batches, host, self.chosen)))

    def _can_score(self, host: Host, sample: Sample) -> bool:
        """Whether what a model says of a sample can be right: it is of the same task, knows the sample's class, and finds the
        columns by which it words questions."""
        config = host.task.config
        known = "label" not in config.spec.fields or not config.classes or sample.label in config.classes
        return config.name == self.config.name and known and not lacking(sample, config.wording)


@dataclass
class Scores:
    """What was found of a router on samples.

    Attributes:
        task: the runs' tasks as one.
        evaluation: the scores.
        facts: what `metrics.json` holds besides, under `router`.
    """

    task: Task
    evaluation: Evaluation
    facts: dict[str, Any] = field(default_factory=dict)


def score(router: Router, samples: Sequence[Sample], batches: Batches, display: Display) -> Scores:
    """Score a router on the samples of all of its runs, beside the oracle and each run on everything.

    Args:
        router: the trained router.
        samples: the samples, each saying its run.
        batches: what computes.
        display: where progress is shown.
    """
    routes = {route.name: route for route in router.routes}
    labels = [router.names.index(sample.subtask) for sample in samples]
    asked = [router.said(routes[sample.subtask], sample) for sample in samples]
    alone = [router.said(None, sample) for sample in samples]
    known: dict[tuple[Any, ...], Evaluation] = {}

    def task_by(chosen: Sequence[Routed]) -> Task:
        by_id = {sample.id: one for sample, one in zip(samples, chosen, strict=True)}
        subtasks = {name: cast(Task, RoutedTask(router, name, by_id)) for name in router.names}
        return Joint(router.config.task, router.reader.backbone, subtasks)

    def by(chosen: Sequence[Routed]) -> Evaluation:
        key = tuple((one.best, tuple(one.weights.items()), one.abstains) for one in chosen)
        if key not in known:
            known[key] = task_by(chosen).evaluate(samples, batches)
        return known[key]

    def right(chosen: Sequence[Routed]) -> float:
        return 100 * sum(one.best == sample.subtask for one, sample in zip(chosen, samples, strict=True)) / len(samples)

    seen = router.seen(samples, display)
    chosen = router.choose(samples, asked, seen)
    known_best = [Routed(sample.subtask, {sample.subtask: 1.0}) for sample in samples]
    evaluation, oracle = by(chosen), by(known_best)
    facts: dict[str, Any] = {
        "accuracy": right(chosen),
        "confusion": confusion([router.names.index(one.best) for one in chosen], labels, len(router.names)),
        "sources": router.names,
        "abstained": sum(one.abstains for one in chosen),
        "oracle": oracle.metrics,
        "of_oracle": of_oracle(evaluation, oracle),
        "singles": {name: by([Routed(name, {name: 1.0})] * len(samples)).metrics for name in router.names},
        "reads": {"tower": router.reader.tower, "layers": router.reader.layers, "again_for": router.reads_again},
    }
    if alone != asked:
        without = router.choose(samples, alone, seen)
        silent = by(without)
        facts["image_alone"] = {
            "accuracy": right(without),
            "metrics": silent.metrics,
            "of_oracle": of_oracle(silent, oracle),
        }
    step = max(1, len(samples) // TIMED)
    timed = list(range(0, len(samples), step))[:TIMED]
    facts["extra_time"] = router.extra_time(
        [samples[n] for n in timed], [asked[n] for n in timed], [chosen[n] for n in timed]
    )
    return Scores(task_by(chosen), evaluation, facts)


def of_oracle(evaluation: Evaluation, oracle: Evaluation) -> float:
    """Percent of the oracle's headline scores, the mean over the runs; a run whose own score is 0 leaves nothing to lose."""
    names = oracle.settings["mean_of"]
    return sum(100 * evaluation.metrics[n] / oracle.metrics[n] if oracle.metrics[n] else 100.0 for n in names) / len(
        names
    )
