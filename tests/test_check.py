"""`make check` runs the tests of what has changed."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
mirrors = runpy.run_path(str(ROOT / "scripts" / "changed_tests.py"))["mirrors"]


@pytest.mark.parametrize(
    ("changed", "tested"),
    [
        (["vlatrain/data/rows.py", "vlatrain/data/cells.py"], ["tests/data", "tests/test_architecture.py"]),
        (["vlatrain/runs/folder.py"], ["tests/runs", "tests/test_architecture.py"]),
        (["vlatrain/cli/main.py"], ["tests/cli", "tests/test_architecture.py"]),
        (["conf/task/vqa.yaml"], ["tests/config"]),
        (["tests/test_sweeps.py", "Makefile"], ["tests/test_packaging.py", "tests/test_sweeps.py"]),
        (["README.md", "vlatrain/data/README.md"], ["tests/test_readme.py"]),
        (["tests/data/test_rows.py", "tests/data/writing.py"], ["tests/data"]),
        (["tests/conftest.py", "vlatrain/data/rows.py"], ["tests"]),
        (["LICENSE", "vlatrain/gone.py"], ["tests/test_architecture.py"]),
    ],
)
def test_a_change_is_tested_by_its_mirror(changed: list[str], tested: list[str]) -> None:
    assert mirrors(changed) == tested
