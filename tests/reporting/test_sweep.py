from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from vlatrain.reporting.sweep import Outcome, finish, table, varied_keys


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
    console.print(table(outcomes))
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


def test_the_file_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish([outcome(0, seed="1"), outcome(1, seed="2", failure="why")], tmp_path / "sweep")
    first, second = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert (first["score"], first["failure"], first["varied"]) == (80.0, None, {"seed": "1"})
    assert (second["score"], second["failure"]) == (None, "why")
    assert "1 of 2 runs failed" in capsys.readouterr().out


def test_nothing_to_tell_is_nothing_told(tmp_path: Path) -> None:
    finish([Outcome(0)], tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
