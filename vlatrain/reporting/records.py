"""An evaluation with what its scores are compared with, as `metrics.json` holds it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from vlatrain.config import TrainConfig
from vlatrain.config.joint import scores as score_specs
from vlatrain.metrics import bootstrap
from vlatrain.reporting.scores import shown_score
from vlatrain.tasks.base import Evaluation
from vlatrain.tasks.yardsticks import Yardsticks, by_group

TRAINING, ITSELF = "the training data", "the evaluated data itself, as the run keeps none of its training data"


def scored_record(config: TrainConfig, evaluation: Evaluation, yardsticks: Yardsticks, source: str) -> dict[str, Any]:
    """What `metrics.json` holds of an evaluation, as JSON values.

    Args:
        config: the run's configuration; its task's description has the units.
        evaluation: the evaluation.
        yardsticks: what its scores are compared with.
        source: of which data the baselines are: `TRAINING` or `ITSELF`.
    """
    known = score_specs(config.task)
    intervals = bootstrap.intervals(evaluation.statistics, evaluation.strata)
    drawn = {
        "level": bootstrap.LEVEL,
        "resamples": bootstrap.resamples(sum(evaluation.strata)),
        "seed": bootstrap.SEED,
        "samples": sum(evaluation.strata),
    }
    baselines = {name: {**asdict(found), "source": source} for name, found in yardsticks.baselines.items()}
    record = {
        "metrics": evaluation.metrics,
        "units": {name: known[name].unit for name in evaluation.metrics if name in known},
        "settings": evaluation.settings,
        "loss": finite(evaluation.loss),
        "baselines": baselines,
        "ceilings": yardsticks.ceilings,
        **yardsticks.facts,
        "intervals": {name: list(ends) for name, ends in intervals.items()},
        "bootstrap": drawn if intervals else None,
        "groups": by_group(evaluation.groupings, evaluation.statistics),
    }
    return {key: value for key, value in record.items() if key in ("metrics", "settings") or value not in (None, {})}


def finite(loss: float | None) -> float | None:
    """A loss as JSON has it, which knows no infinity."""
    return loss if loss is not None and math.isfinite(loss) else None


def in_a_line(config: TrainConfig, evaluation: Evaluation) -> str:
    """All scores of an evaluation with their units, and its loss."""
    shown = [f"{name} {shown_score(config, name, value)}" for name, value in evaluation.metrics.items()]
    return ", ".join([*shown, *([f"loss {evaluation.loss:.4f}"] if evaluation.loss is not None else [])])
