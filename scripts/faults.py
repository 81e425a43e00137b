"""Make every fault of the matrix (`tests/faults/table.py`) happen, and print what came of it: `make faults`, or
`python scripts/faults.py [--rows 1,7]`. Runs the tests of each row, slow ones too; status 1 where one does not end as it should.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults.table import ROWS, Row  # noqa: E402, found from anywhere


class Outcome(NamedTuple):
    """What came of a test, of all its cells together.

    Attributes:
        ran: how many were run.
        skipped: why others were not: they cannot be run here.
        failed: how many of them failed.
        seconds: what they took.
    """

    ran: int = 0
    failed: int = 0
    seconds: float = 0.0
    skipped: str = ""


def run(tests: Iterable[str], words: Sequence[str] = ()) -> dict[str, Outcome]:
    """Run tests, each once; what came of those that ran."""
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "slow or not slow",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
        ]
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *words, *dict.fromkeys(tests)], cwd=ROOT, env=variables, check=False)
        cases = ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ()
        for case in cases:
            name = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name'].partition('[')[0]}"
            before = outcomes.get(name, Outcome())
            if (skipped := case.find("skipped")) is not None:
                outcomes[name] = before._replace(skipped=skipped.attrib["message"])
                continue
            failed = case.find("failure") is not None or case.find("error") is not None
            seconds = before.seconds + float(case.attrib.get("time", 0))
            outcomes[name] = before._replace(ran=before.ran + 1, failed=before.failed + failed, seconds=seconds)
    return outcomes


def described(row: Row, outcomes: Mapping[str, Outcome]) -> tuple[bool, str]:
    """Whether a row ends as it should, and its figures."""
    missing = [test for test in row.tests if test not in outcomes]
    if missing or not any(outcomes[test].ran for test in row.tests):
        return False, f"not run: {', '.join(missing or row.tests)}"
    found = [outcomes[test] for test in row.tests]
    ran, failed = sum(one.ran for one in found), sum(one.failed for one in found)
    if failed:
        return False, f"{failed} of {ran} tests failed"
    left_out = "".join(f"; not here: {one.skipped}" for one in found if one.skipped)
    return True, f"{ran} test{'s' * (ran > 1)}, {sum(one.seconds for one in found):.0f} s{left_out}"


def main() -> int:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="numbers of rows, by comma: these alone")
    options, words = parser.parse_known_args()
    numbers = {int(number) for number in options.rows.split(",") if number}
    rows = [row for row in ROWS if not numbers or row.number in numbers]
    began = time.perf_counter()
    outcomes = run((test for row in rows for test in row.tests), words)
    well = 0
    print()
    for row in rows:
        good, figures = described(row, outcomes)
        well += good
        on_gpu = f"; here its way on a CPU, on a GPU: gpu_check.py --stages {row.stage}" if row.stage else ""
        print(
            f"{row.number:3} {'ok  ' if good else 'FAIL'} {row.fault}: {row.injection} -> {row.expected} ({figures}{on_gpu})"
        )
    print(f"{well} of {len(rows)} rows end as they should, {time.perf_counter() - began:.0f} s")
    return int(well < len(rows))


if __name__ == "__main__":
    sys.exit(main())
