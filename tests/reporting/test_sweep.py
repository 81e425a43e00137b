from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from vlatrain.reporting.sweep import BAR, best, chart, finish, line, not_run, over_seeds, table, varied_keys
from vlatrain.runs import Outcome


def outcome(number: int, metric: str = "accuracy", failure: str = "", **values: str) -> Outcome:
    metrics = {
        "metric": metric,
        "metrics": {metric: 80.0 + number},
        "parameters": {"percent": 2.5},
        "speed": {"samples_per_s": 100.0},
        "memory": {"peak_mb": 800.0},
    }
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    folder = Path(f"outputs/run-{number}")
    return Outcome(number, overrides, folder, {} if failure else metrics, failure, 1.0)


def shown(outcomes: list[Outcome]) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(outcomes, console))
    return console.export_text()


def test_only_what_varied_has_a_column() -> None:
    runs = [outcome(0, adapter__dim="16", seed="1"), outcome(1, adapter__dim="64", seed="1")]
    assert varied_keys(runs) == ["adapter.dim"]
    text = shown(runs)
    assert "adapter.dim" in text
    assert "seed" not in text
    for part in ("accuracy", "80.00", "81.00", "2.500", "100.0", "800", "run-1"):
        assert part in text


def test_different_metrics_are_named_in_their_rows() -> None:
    text = shown([outcome(0, "accuracy", task="vqa"), outcome(1, "cider", task="captioning")])
    assert "accuracy 80.00" in text
    assert "cider 81.00" in text


def test_a_failed_run_is_a_row_that_says_why() -> None:
    text = shown([outcome(0, seed="1"), outcome(1, seed="2", failure="no [memory] left")])
    assert "failed: no [memory] left" in text


def test_what_does_not_fit_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [outcome(0, task="retrieval"), Outcome(1, ["task=vqa"], left_out="model=clip cannot")]
    assert "left out: model=clip cannot" in shown(runs)
    finish(runs, tmp_path)
    assert "1 runs, 1 left out" in capsys.readouterr().out
    row = json.loads((tmp_path / "sweep.json").read_text())[1]
    assert (row["left_out"], row["failure"], row["score"]) == ("model=clip cannot", None, None)


def test_the_file_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish([outcome(0, seed="1"), outcome(1, seed="2", failure="why")], tmp_path / "sweep")
    first, second = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert (first["score"], first["failure"], first["varied"]) == (80.0, None, {"seed": "1"})
    assert (second["score"], second["failure"]) == (None, "why")
    assert "1 of 2 runs failed" in capsys.readouterr().out


def test_nothing_to_tell_is_nothing_told(tmp_path: Path) -> None:
    finish([Outcome(0)], tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def charted(outcomes: list[Outcome]) -> str:
    made = chart(outcomes)
    assert made is not None
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(made)
    return console.export_text()


def test_bars_are_as_long_as_their_share_of_the_longest() -> None:
    slow, fast = outcome(0, seed="1"), outcome(1, seed="2")
    slow.metrics["speed"]["samples_per_s"] = 50.0
    heading, first, second = charted([slow, fast]).splitlines()
    assert heading.split() == ["seed", "accuracy", "samples/s"]
    assert [part.count("█") for part in first.split(" ") if "█" in part] == [round(BAR * 80 / 81), BAR // 2]
    assert [part.count("█") for part in second.split(" ") if "█" in part] == [BAR, BAR]


def test_no_chart_of_what_cannot_be_compared() -> None:
    assert chart([outcome(0, seed="1")]) is None
    assert chart([outcome(0, seed="1"), outcome(1, seed="2", failure="why")]) is None
    assert chart([outcome(0, "accuracy", task="vqa"), outcome(1, "cider", task="captioning")]) is None


def test_the_csv_has_a_column_for_what_varied(tmp_path: Path) -> None:
    finish([outcome(0, seed="1"), outcome(1, seed="2", failure="no, none")], tmp_path)
    with (tmp_path / "sweep.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["seed"], first["score"], first["samples_per_s"], first["failure"]) == ("1", "80.0", "100.0", "")
    assert (second["seed"], second["score"], second["failure"]) == ("2", "", "no, none")


def test_every_metric_has_a_column_of_the_csv(tmp_path: Path) -> None:
    runs = [outcome(0, task="vqa"), outcome(1, "cider_d", task="captioning")]
    finish(runs, tmp_path)
    with (tmp_path / "sweep.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["accuracy"], first["cider_d"]) == ("80.0", "")
    assert (second["accuracy"], second["cider_d"]) == ("", "81.0")


def test_baselines_and_units_have_their_place(tmp_path: Path) -> None:
    runs = [outcome(0, seed="1"), outcome(1, seed="2"), outcome(2, seed="3")]
    for run in runs[:2]:
        run.metrics |= {"units": {"accuracy": "%"}, "baselines": {"majority_class": {"metrics": {"accuracy": 80.5}}}}
    runs[2].metrics["units"] = {"accuracy": "%"}
    lines = shown(runs).splitlines()
    assert "accuracy % ┃ baseline" in lines[2]
    assert "80.50" in lines[4]
    assert ["(not above its baseline)" in line for line in lines[4:7]] == [True, False, False]
    finish(runs, tmp_path)
    with (tmp_path / "sweep.csv").open() as file:
        rows = [
            [row[key] for key in ("unit", "baseline", "baseline_name", "above_baseline")]
            for row in csv.DictReader(file)
        ]
    assert rows == [
        ["%", "80.5", "majority class", "False"],
        ["%", "80.5", "majority class", "True"],
        ["%", "", "", ""],
    ]


def test_the_best_is_marked_where_there_is_one() -> None:
    runs = [outcome(0, seed="1"), outcome(2, seed="2"), outcome(1, seed="3")]
    assert best(runs) is runs[1]
    assert "82.00*" in shown(runs)
    runs[1].metrics["metrics"] = {"accuracy": 81.0}
    assert best(runs) is None, "two are as good"
    assert "*" not in shown(runs)
    assert best([outcome(0, "accuracy", task="vqa"), outcome(1, "cider", task="captioning")]) is None


def test_means_and_deviations_are_over_seeds_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [outcome(number, seed=str(number % 2), adapter__dim=str(8 * (number // 2))) for number in range(4)]
    runs.append(outcome(4, seed="2", adapter__dim="0", failure="why"))
    assert over_seeds(runs) == [
        {"adapter.dim": "0", "metric": "accuracy", "mean": 80.5, "deviation": pytest.approx(0.5**0.5), "runs": 2},
        {"adapter.dim": "8", "metric": "accuracy", "mean": 82.5, "deviation": pytest.approx(0.5**0.5), "runs": 2},
    ]
    finish(runs, tmp_path)
    assert "mean over seeds" in capsys.readouterr().out
    with (tmp_path / "seeds.csv").open() as file:
        assert [row["mean"] for row in csv.DictReader(file)] == ["80.5", "82.5"]
    assert not over_seeds(runs[::2]), "each setting has one seed"
    assert not over_seeds([outcome(0, adapter__dim="4"), outcome(1, adapter__dim="8")])


def test_a_job_is_told_of_in_a_line() -> None:
    one = outcome(2, seed="1")
    assert line(one, "seed=1", 6, "accuracy 82.00 %") == "[3/6] seed=1: accuracy 82.00 %, 1 s, outputs/run-2"
    one.metrics["training"] = {"pruned": 40}
    assert "accuracy 82.00 % (stopped at step 40: others were better there), 1 s" in line(
        one, "", None, "accuracy 82.00 %"
    )
    assert line(outcome(0, failure="why"), "a=1", 2, "") == "[1/2] a=1: failed: why, 1 s, outputs/run-0"
    assert line(outcome(0, failure="stopped"), "a=1", 2, "") == "[1/2] a=1: stopped, 1 s, outputs/run-0"
    assert line(Outcome(1, left_out="cannot"), "a=2", 2, "") == "[2/2] a=2: left out: cannot"


def test_what_a_stopped_sweep_has_not_run_is_said() -> None:
    planned = [(f"seed={number}",) for number in range(9)]
    told = not_run(planned, [outcome(0), outcome(1, failure="stopped")], "vlatrain -m resume=auto")
    assert told.splitlines() == [
        "Not run to the end: 8 of 9 jobs: seed=1 (begun); seed=2; seed=3; seed=4; seed=5; 3 more",
        "To go on: vlatrain -m resume=auto",
    ]
    assert not not_run(planned[:1], [outcome(0)], "")
