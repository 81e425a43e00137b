"""What `metrics.json` holds of an evaluation."""

from __future__ import annotations

from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.metrics.bootstrap import mean
from vlatrain.reporting.records import TRAINING, scored_record
from vlatrain.reporting.scores import group_rows
from vlatrain.tasks.base import Evaluation
from vlatrain.tasks.yardsticks import Baseline, Grouping, Yardsticks

CONFIG = TrainConfig(task=TaskConfig("classification"))


def test_the_record_has_everything_as_json_values() -> None:
    scores = mean([100.0, 0.0, 100.0, 100.0])
    grouping = Grouping(["a", "b", "a", "a"], ["accuracy"])
    evaluation = Evaluation(
        {"accuracy": 75.0}, {"classes": 2}, [], {"accuracy": scores}, [4], {"class": grouping}, loss=0.5
    )
    yardsticks = Yardsticks(
        {"majority_class": Baseline({"accuracy": 50.0}, "always 'a'")}, {"accuracy": 90.0}, {"n": 1}
    )
    found = scored_record(CONFIG, evaluation, yardsticks, TRAINING)
    low, high = found.pop("intervals")["accuracy"]
    assert 0 <= low < 75 < high <= 100
    assert found == {
        "metrics": {"accuracy": 75.0},
        "units": {"accuracy": "%"},
        "settings": {"classes": 2},
        "loss": 0.5,
        "baselines": {
            "majority_class": {"metrics": {"accuracy": 50.0}, "says": "always 'a'", "source": TRAINING},
        },
        "ceilings": {"accuracy": 90.0},
        "n": 1,
        "bootstrap": {"level": 95.0, "resamples": 1000, "seed": 0, "samples": 4},
        "groups": {"class": {"a": {"samples": 3, "accuracy": 100.0}, "b": {"samples": 1, "accuracy": 0.0}}},
    }
    assert list(group_rows(CONFIG, {"metric": "accuracy", **found})) == [
        ("accuracy by class", "a 100.00 % of 3, b 0.00 % of 1")
    ]


def test_units_are_the_descriptions_of_subtasks_too() -> None:
    joint = TrainConfig(task=TaskConfig("joint", metric="mean", subtasks={"vqa": {}, "captioning": {}}))
    metrics = {"mean": 80.0, "vqa/accuracy": 60.0, "captioning/cider_d": 100.0}
    found = scored_record(joint, Evaluation(metrics, {}, []), Yardsticks(), TRAINING)
    assert found["units"] == {"mean": "", "vqa/accuracy": "%", "captioning/cider_d": ""}
