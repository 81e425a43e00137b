"""Scores beside what they are compared with, in `metrics.json`, in tables, in a line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.reporting.records import TRAINING
from vlatrain.reporting.scores import headline, marks, result_line, score_table
from vlatrain.reporting.summary import best_step, show_run

CONFIG = TrainConfig(task=TaskConfig("classification"))


def record(score: float, baseline: float | None = 70.0, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"metric": "accuracy", "metrics": {"macro_f1": 41.0, "accuracy": score}, **more}
    if baseline is not None:
        scores = {"accuracy": baseline, "macro_f1": 20.0}
        found["baselines"] = {"majority_class": {"metrics": scores, "says": "always 'free'", "source": TRAINING}}
    return found


def shown(config: TrainConfig, metrics: dict[str, Any]) -> list[list[str]]:
    """The cells of a table's rows."""
    console = Console(file=io.StringIO(), width=200)
    console.print(score_table(config, metrics, "title"))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines if line[0] in "│┃"
    ]


@pytest.mark.parametrize(
    ("score", "baseline", "low"), [(70.0, 70.0, True), (69.0, 70.0, True), (70.1, 70.0, False), (10.0, None, False)]
)
def test_a_score_at_or_below_its_baseline_is_marked_in_words(score: float, baseline: float | None, low: bool) -> None:
    metrics = record(score, baseline)
    assert bool(marks(CONFIG, metrics)) is low
    assert ("not above its baseline" in headline(CONFIG, metrics)) is low
    _, first, second = shown(CONFIG, metrics)
    assert first[:2] == ["accuracy", f"{score:.2f} %"]
    if baseline is not None:
        assert first[2] == f"{baseline:.2f} % majority class" + (": not above it" if low else "")
        assert second == ["macro_f1", "41.00 %", "20.00 % majority class"]
    if low:
        expected = f"accuracy {score:.2f} % is not above its baseline, 70.00 % (majority class: always 'free')"
        assert marks(CONFIG, metrics) == [expected]


def test_the_best_of_several_baselines_counts_and_less_may_be_more() -> None:
    config = TrainConfig(task=TaskConfig("retrieval"))
    ranks = {"image_to_text_median_rank": 7.0}
    baselines = {"chance": {"metrics": {"mean_recall": 3.0, "image_to_text_median_rank": 6.0}}}
    metrics = {"metric": "mean_recall", "metrics": {"mean_recall": 4.0, **ranks}, "baselines": baselines}
    assert shown(config, metrics)[1:] == [
        ["mean_recall", "4.00 %", "3.00 % chance"],
        ["image_to_text_median_rank", "7.00", "6.00 chance: not below it"],
    ]
    baselines["other_one"] = {"metrics": {"mean_recall": 5.0}}
    assert "5.00 % other one: not above it" in shown(config, metrics)[1]


def test_interval_ceiling_and_frozen_model_stand_beside_the_score() -> None:
    metrics = record(50.0, 40.0, intervals={"accuracy": [41.0, 59.5]}, ceilings={"accuracy": 66.7, "macro_f1": 100.0})
    metrics["frozen"] = {"metrics": {"accuracy": 12.5}}
    metrics["test"] = {"metrics": {"accuracy": 39.0}, "baselines": metrics["baselines"]}
    heading, first, _, test = shown(CONFIG, metrics)
    assert heading == ["what", "value", "baseline", "frozen model"]
    assert first == ["accuracy", "50.00 % [41.00 to 59.50] of at most 66.70 %", "40.00 % majority class", "12.50 %"]
    assert test == ["test accuracy", "39.00 %", "40.00 % majority class: not above it", ""]
    assert marks(CONFIG, metrics["test"], "test")[0].startswith("test accuracy 39.00 % is not above")


def test_a_run_of_before_is_shown_as_it_is() -> None:
    assert shown(CONFIG, record(50.0, None)) == [["what", "value"], ["accuracy", "50.00 %"], ["macro_f1", "41.00 %"]]
    assert best_step({"training": {"steps": 3, "best_step": 2}, "metrics": {"accuracy": 1.0}}) is None


def test_what_is_no_percentage_has_no_unit() -> None:
    captioning = TrainConfig(task=TaskConfig("captioning", metric="cider_d"))
    assert headline(captioning, {"metric": "cider_d", "metrics": {"cider_d": 133.3}}) == "cider_d 133.30"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "best step: the best of the evaluations, chosen on the data that is reported here"),
        ({"test": {}}, "best step: the best of the evaluations, chosen on the evaluation data"),
    ],
)
def test_the_best_step_is_named_and_on_what_it_was_chosen(more: dict[str, Any], said: str) -> None:
    training = {"steps": 9, "best_step": 7, "evaluations": 3}
    assert best_step({**record(50.0), "training": training, **more}) == ("7 of 9, best of 3", said)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (record(70.1), "accuracy 70.10 %, better than 70.00 % (majority class)"),
        (record(70.0), "accuracy 70.00 %, no better than 70.00 % (majority class)"),
        (record(70.0, None), "accuracy 70.00 %"),
        ({"metric": "accuracy", "metrics": {}}, ""),
    ],
)
def test_the_headline_is_a_line_with_what_it_beat(metrics: dict[str, Any], said: str) -> None:
    assert result_line(CONFIG, metrics) == said


@pytest.mark.parametrize("terminal", [True, False])
def test_a_finished_run_is_80_columns_wide_and_breaks_no_path(terminal: bool, tmp_path: Path) -> None:
    folder = tmp_path / "a [long] folder" / ("x" * 90)
    folder.mkdir(parents=True)
    for name in ("metrics.json", "predictions.jsonl", "report.html"):
        (folder / name).touch()
    metrics = record(80.0, parameters={"trainable": 1, "total": 100, "percent": 1.0}, memory={"peak_mb": 1.0})
    metrics |= {"speed": {"samples_per_s": 5.0, "wall_s": 9.0}, "machine": {"device": "cpu"}}
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)
    show_run(CONFIG, folder, metrics, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "accuracy 80.00 %, better than 70.00 % (majority class)"
    assert lines[1].strip() == "classification · tiny_blip · bottleneck"
    assert f"Everything is in {folder}:" in lines
    assert all(line.strip() for line in lines)
    assert all(len(line) <= 80 for line in lines if line[0] in "│┃┏└┡")
    assert sum(str(folder) in line for line in lines) == 2  # where it is, and how to ask it
