"""What people see has at most as many columns as their terminal, and names stay whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vlatrain.reporting.console import RichConsole, print_sentence
from vlatrain.reporting.data_tables import show_report
from vlatrain.reporting.fitted import fitted, shortened
from vlatrain.reporting.sweep import table
from vlatrain.runs.sweep import Outcome

COLUMNS = {
    "name": ["image_to_text_median_rank", "mean_recall"],
    "said": ["one word after another " * 4, "short"],
    "cost": ["1.00", "2.00"],
    "empty": ["", ""],
    "speed": ["100.0", "200.0"],
}


def lines_of(shown: Any, width: int) -> list[str]:
    console = RichConsole(width=width, file=io.StringIO(), record=True)
    console.print(shown(console))
    return console.export_text().splitlines()


@pytest.mark.parametrize(("width", "gone"), [(120, ""), (60, ""), (52, "speed"), (44, "speed, cost")])
def test_columns_of_least_importance_go_first_and_are_named(width: int, gone: str) -> None:
    lines = lines_of(lambda console: fitted(COLUMNS, console, ("empty", "speed", "cost"), ("said",)), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert ("left out for want of room: " + gone in text) if gone else "left out" not in text
    assert "empty" not in text
    assert "image_to_text_median_rank" in text
    assert "…" not in text
    assert all(heading in text for heading in ("cost", "speed") if heading not in gone)


def test_of_a_path_the_end_is_shown() -> None:
    assert shortened("outputs/vqa/blip/a_photograph_blue.png", 18) == "…otograph_blue.png"
    assert len(shortened("x" * 40, 10)) == 10
    assert shortened("red.png", 7) == "red.png"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_sentence_ends_its_lines_between_words_and_is_one_line_elsewhere(terminal: bool) -> None:
    stream, path = io.StringIO(), "/home/somebody/with/a/path/that/is/longer/than/a/line/of/this/console.jsonl"
    console = Console(file=stream, width=40, force_terminal=terminal, color_system=None)
    print_sentence(f"warning: what is in [bold] {path} cannot be read by anybody", console, marked={"warning:": "red"})
    lines = stream.getvalue().splitlines()
    assert any(path in line for line in lines)
    assert "[bold]" in " ".join(lines)
    if terminal:
        assert all(len(line) <= 40 or path in line for line in lines)
        assert len(lines) == 3
    else:
        assert len(lines) == 1


def test_a_data_report_is_legible_in_80_columns() -> None:
    tokens = dict.fromkeys(("median", "p90", "p99", "longest"), 1234)
    row = {"kind": "conversations", "texts": 123456, "tokens": tokens, "limit": 2048, "cut": 0.5, "unknown": 0.0}
    changed = {"changed": 1.5, "changed_to": {"it costs 3.5 a kilogramme, or": "it costs 3. 5 a kilogramme, or"}}
    facts = {"samples": 9, "images": {"number": 9, "distinct": 9, "formats": {}}, "texts": [row | changed]}
    stream = io.StringIO()
    show_report({"subtasks": {"": {"splits": {"train": facts}}}, "warnings": []}, Console(file=stream, width=80))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert all(shown in text for shown in ("conversations", "longest", "limit", "left out for want of room: 90 %"))
    assert "…" not in text


def test_a_sweep_is_legible_in_80_columns() -> None:
    metrics = {"metric": "accuracy", "metrics": {"accuracy": 80.0}, "parameters": {"percent": 2.5}}
    metrics |= {"speed": {"samples_per_s": 1000.0}, "memory": {"peak_mb": 12345.0}}
    outcomes = [
        Outcome(n, [f"adapter.dim={n}", f"optim.lr=0.00{n}"], Path(f"outputs/{'x' * 60}-lr-0.00{n}"), metrics, "", 1.0)
        for n in (1, 2)
    ]
    outcomes.append(Outcome(3, ["adapter.dim=3"], None, {}, "UserError: there is no room on the disk for it", 1.0))
    lines = lines_of(lambda console: table(outcomes, console), 80)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert all(shown in text for shown in ("xx-lr-0.001", "80.00", "left out for want of room", "adapter.dim"))
