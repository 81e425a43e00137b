"""Storms over whole runs of the command line: many kills, a disk that is full at each write, two processes at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.sessions import WORDS, full_from, result_of, session

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent


def finish(process: Any) -> int:
    process.join(120)
    assert not process.is_alive(), "it hangs"
    return process.exitcode


@pytest.mark.parametrize("cache", ["off", "disk"])
def test_twenty_kills_at_random_moments(cache: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "one" / "run", tmp_path / "two" / "run"
    for folder in (whole, killed):
        folder.parent.mkdir()
    began = time.monotonic()
    assert finish(session(whole, f"trainer.cache={cache}")) == 0
    took = time.monotonic() - began
    draw, kills = random.Random(cache), 0
    while kills < 20:
        process = session(killed, f"trainer.cache={cache}")
        process.join(draw.random() * took)
        process.kill()
        if finish(process) == -signal.SIGKILL:
            kills += 1
        else:  # it came to its end, after what there was: another round
            assert result_of(killed) == result_of(whole)
            shutil.rmtree(killed)
    assert finish(session(killed, f"trainer.cache={cache}")) == 0
    assert result_of(killed) == result_of(whole)
    assert not list(killed.rglob("*.tmp"))


def test_a_disk_that_is_full_at_each_write(tmp_path: Path) -> None:
    whole, full = tmp_path / "one" / "run", tmp_path / "two" / "run"
    for folder in (whole, full):
        folder.parent.mkdir()
    assert finish(session(whole, "trainer.cache=off")) == 0
    number = refused = 0
    while True:
        number += 1
        status = finish(session(full, "trainer.cache=off", before=full_from(number)))
        said = full.with_suffix(".said").read_text()
        assert "Traceback" not in said, said
        if status == 0:
            break
        assert status == 2, said
        assert sum(line.startswith("error") for line in said.splitlines()) == 1, said
        assert "No space left on device" in said
        refused += 1
    assert refused > 10
    assert result_of(full) == result_of(whole)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    own_mounts = ["unshare", "--map-root-user", "--mount"]
    tried = [*own_mounts, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(tried, capture_output=True).returncode:
        pytest.skip("no file system of its own can be mounted here")
    words = [*own_mounts, sys.executable, "-m", "tests.faults.full_disk", str(tmp_path)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(words, capture_output=True, text=True, env=variables, timeout=900, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    print(last := ran.stdout.splitlines()[-1])
    assert int(last.split()[1]) > 5


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command_line = [sys.executable, "-m", "vlatrain", *WORDS, f"run.dir={folder}"]
    environment = {**os.environ, "VLATRAIN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    (refused,) = (text for process, text in zip(both, said, strict=True) if process.returncode == 2)
    assert "is being written by" in refused
    assert "Traceback" not in "".join(said)
    assert (folder / "metrics.json").exists()
