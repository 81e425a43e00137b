"""A run killed at any moment continues, and ends with the same bits as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import command

SETTINGS = [
    "task=vqa", "data.train_size=40", "data.eval_size=4", "trainer.max_steps=14", "trainer.batch_size=4", "trainer.accumulate=2",
    "trainer.save_every=2", "trainer.eval_every=5", "trainer.threads=1", "adapter.dropout=0.2", "adapter.init=normal",
]  # fmt: skip


def start(folder: Path, *more: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "vlatrain", *SETTINGS, *more, f"run.dir={folder}", "resume=auto"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(process: subprocess.Popen, folder: Path, step: int, while_saving: bool) -> None:
    """Until the run has begun to save a step (or has saved it), or is over."""
    name = f"step_{step}.tmp" if while_saving else f"step_{step}"
    last = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < last:
        saved = [int(path.name.split("_")[1]) for path in folder.glob("checkpoints/step_*") if path.suffix != ".tmp"]
        if (folder / "checkpoints" / name).exists() or any(number >= step for number in saved):
            return
        time.sleep(0.0005 if while_saving else 0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "more"),
    [(0, []), pytest.param(1, ["adapter.trunk=[norms]"], marks=pytest.mark.slow)],
    ids=["adapter", "trunk too"],
)
def test_sigkill_at_random_steps_and_during_a_save(seed: int, more: list[str], tmp_path: Path) -> None:
    draw = random.Random(seed)
    assert command(*SETTINGS, *more, f"run.dir={tmp_path / 'whole'}") == 0
    broken = tmp_path / "broken"
    kills = 0
    for step in (2 * draw.randint(1, 3), 2 * draw.randint(4, 6)):
        process = start(broken, *more)
        wait_for(process, broken, step, while_saving=draw.random() < 0.5)
        time.sleep(draw.random() * 0.05)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills  # at least one came before the end
    assert command(*SETTINGS, *more, f"run.dir={broken}", "resume=auto") == 0
    for name in ["adapter_model.safetensors", *(["trunk.safetensors"] if more else [])]:
        one, two = (folder / "adapter" / name for folder in (tmp_path / "whole", broken))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_sigterm_saves_first_and_says_how_to_continue(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "vlatrain", *SETTINGS, f"run.dir={folder}", "trainer.max_steps=500"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(process, folder, 2, while_saving=False)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "resume=auto" in said
    assert str(folder) in said
    assert "Traceback" not in said
    assert list(folder.glob("checkpoints/step_*"))
