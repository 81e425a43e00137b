"""The notebooks in `scripts/notebooks/`: whole, without outputs, and each runs from its first cell to its last."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "scripts" / "notebooks").glob("*.ipynb"))
SECONDS = 90  # of processor time, at most


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The cells that hold code."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def test_there_are_four() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == [
        "comparing_methods",
        "first_adapter",
        "own_data",
        "predictions",
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_is_plain_code_without_outputs(notebook: Path) -> None:
    ids = [cell["id"] for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    assert len({*ids}) == len(ids)
    for cell in cells(notebook):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        compile("".join(cell["source"]), notebook.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_runs_in_time(notebook: Path, tmp_path: Path) -> None:
    code = tmp_path / "notebook.py"
    code.write_text("\n".join("".join(cell["source"]) + "\n" for cell in cells(notebook)), encoding="utf-8")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, str(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert after.ru_utime - before.ru_utime < SECONDS
