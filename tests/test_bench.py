"""The training benchmark runs, on its smallest row: what it prints and writes is there and fits together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "bench_training.py"


@pytest.mark.slow
def test_both_sides_of_a_row_and_the_files(tmp_path: Path) -> None:
    figures, drawn, row = tmp_path / "figures.json", tmp_path / "figures.png", "retrieval, last 2"
    before = {"rows": {"captioning, decoder": {}}, "starts": {"vlatrain --help": 0.1}}
    figures.write_text(json.dumps(before), encoding="utf-8")
    command = [sys.executable, str(SCRIPT), "--rows", row, "--steps", "2", "--batch", "2", "--json", str(figures)]
    done = subprocess.run([*command, "--plot", str(drawn)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert [*found["rows"]] == ["captioning, decoder", row]  # what was measured before stays
    ours, theirs = found["rows"][row]["vlatrain"], found["rows"][row]["peft"]
    assert theirs["ratio"] == pytest.approx(ours["samples_per_s"] / theirs["samples_per_s"])
    assert theirs["by_flops"] == pytest.approx(theirs["gflop"] / ours["gflop"])
    assert 3 < theirs["by_flops"] < 3.6  # ten of CLIP's twelve image layers are kept: 41 GFLOP a sample become some 12
    assert 0 < ours["counting_s"] < ours["seconds"]
    assert drawn.stat().st_size > 1000
    assert f"{theirs['ratio']:.1f}x" in done.stdout
