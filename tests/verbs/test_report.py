"""`vlatrain report`, and the report at the end of a training."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.commands import command, tiny_run
from tests.reporting.pages.folders import answers, made_run
from vlatrain.verbs.report import _folders, report


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a/b", ["a/b"]),
        ("[a,b]", ["a", "b"]),
        ("a,b", ["a", "b"]),
        ("['a, b',\"c\"]", ["a, b", "c"]),
        ("[a,a]", ["a"]),
    ],
)
def test_folders_are_taken_as_typed(value: str, expected: list[str]) -> None:
    assert _folders(value) == [Path(name) for name in expected]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "report needs run=FOLDER: a run, a sweep, or a folder with runs in it; run=[A,B] for several"),
        (["runs=x"], "runs=x: report takes run=FOLDER and output=FILE; did you mean run?"),
        (["run=x", "output=page.pdf"], "output=page.pdf: the report is a page: name a file that ends in .html"),
        (["run=nowhere"], "run=nowhere: there is no such folder"),
    ],
)
def test_wrong_words_are_a_line_each(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    reports: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("report", *words) == 2
    assert capsys.readouterr().err == f"error {said}\n"


def test_it_says_where_the_page_is_and_shows_the_table(reports: None, undrawn: None, tmp_path: Path) -> None:
    for number, method in enumerate(("none", "full")):
        made_run(tmp_path / "runs" / method, answers(), [f"adapter={method}"], time=f"2026-01-0{number + 1}")
    console = Console(width=80, record=True)
    assert report([f"run={tmp_path / 'runs'}"], console) == tmp_path / "runs" / "report.html"
    shown = console.export_text()
    assert "samples/s" in shown
    assert f"The report is in {tmp_path / 'runs' / 'report.html'}" in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 80
    assert report([f"run={tmp_path / 'runs' / 'full'}", f"output={tmp_path / 'one.html'}"], console).exists()


@pytest.mark.slow
def test_a_training_ends_with_its_report(reports: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(tmp_path / "run", "vqa", "trainer.eval_frozen=true")
    page = (run / "report.html").read_text()
    assert "report.html" in capsys.readouterr().out
    assert page.count("data:image/png;base64") == 10  # of generated scenes, which are no files
    assert "Against the frozen model" in page
    assert len((run / "predictions-frozen.jsonl").read_text().splitlines()) == 10
    metrics = json.loads((run / "metrics.json").read_text())
    trained = sum(sum(tower["trainable"].values()) for tower in metrics["towers"].values())
    assert trained == metrics["parameters"]["trainable"]


@pytest.mark.slow
def test_a_training_ends_without_one_if_it_is_to(reports: None, tmp_path: Path) -> None:
    assert not (tiny_run(tmp_path / "off", "vqa", "run.report=off") / "report.html").exists()


@pytest.mark.slow
def test_a_sweep_ends_with_its_report(reports: None, tmp_path: Path) -> None:
    sizes = [
        "data.train_size=16",
        "data.eval_size=6",
        "trainer.max_steps=2",
        "trainer.batch_size=4",
        f"run.dir={tmp_path / 'runs'}",
    ]
    assert command("-m", "adapter.dim=2,4", *sizes, f"hydra.sweep.dir={tmp_path / 'sweep'}") == 0
    assert "adapter.dim" in (tmp_path / "sweep" / "report.html").read_text()
    assert not [*tmp_path.glob("runs/*/report.html")]


@pytest.mark.slow
def test_the_script_s_table_comes_from_the_folders_alone(reports: None, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "compare_methods.py"
    sizes = ["data.train_size=16", "data.eval_size=6", "trainer.max_steps=2", "trainer.batch_size=4"]
    words = ["--tasks", "vqa", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "table.md"), *sizes]
    subprocess.run([sys.executable, str(script), *words], check=True, capture_output=True)
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (tmp_path / "table.md").read_text().splitlines()[2:]
    ]
    assert [line[1] for line in table] == ["none", "bottleneck", "lora", "full"]
    page = report([f"run={tmp_path / 'runs'}"], Console(width=80)).read_text()
    (methods,) = re.findall(r'<table class="sortable methods">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in methods.split("</tr>")[:-1]] == table
