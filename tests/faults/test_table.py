"""The matrix is whole, and what it names is there."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from scripts import faults
from tests.faults.table import ROWS, Row

ROOT = Path(__file__).resolve().parent.parent.parent


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_28_rows() -> None:
    assert [row.number for row in ROWS] == [*range(1, 29)]
    assert [row.number for row in ROWS if row.stage] == [2, 20]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_what_a_row_names_is_there(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name in functions_of(file), test
    assert not row.stage or row.stage in functions_of("scripts/gpu_stages.py")


def test_a_row_holds_if_each_of_its_tests_was_run_and_none_failed() -> None:
    row = Row(3, "a fault", "so", "this", ("tests/a/test_b.py::test_c", "tests/a/test_b.py::test_d"))
    passed, failed = faults.Outcome(2, 0, 0.5), faults.Outcome(3, 1, 0.1)
    one, two = row.tests
    assert faults.described(row, {one: passed, two: passed}) == (True, "4 tests, 1 s")
    assert faults.described(row, {one: passed, two: failed}) == (False, "1 of 5 tests failed")
    assert faults.described(row, {one: passed}) == (False, f"not run: {two}")
    skipped = faults.Outcome(skipped="no disk")
    assert faults.described(row, {one: passed, two: skipped}) == (True, "2 tests, 0 s; not here: no disk")
    assert faults.described(row, {one: skipped, two: skipped}) == (False, f"not run: {one}, {two}")


@pytest.mark.slow
def test_the_command_prints_the_rows_asked_for() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "faults.py"), "--rows", "25,27"]
    ran = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300
    )
    assert ran.returncode == 0, ran.stdout
    assert "2 of 2 rows end as they should" in ran.stdout
