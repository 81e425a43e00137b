"""Signals: the first is answered and noted in a training's steps, everywhere else it stops at once and says what is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlatrain.training import signals
from vlatrain.training.signals import SAVING, Signals, Stopped, ending, name_of, named, signal_of


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Signals that whoever runs the tests in the background ignores."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_first_is_noted_and_answered_and_the_second_leaves(
    number: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "AGAIN", 0.0)
    with Signals() as found:
        os.kill(os.getpid(), number)
        assert found.received == number
        assert capfd.readouterr().err == SAVING
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), number)
    assert signal_of(stopped.value) == number
    assert signal_of(KeyboardInterrupt()) == signal.SIGINT


def test_the_same_signal_of_two_senders_is_one() -> None:
    """A launcher passes on what the whole group of processes gets."""
    with Signals() as found:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert found.received == signal.SIGTERM


def test_an_early_warning_is_what_was_asked_for() -> None:
    assert named(None) == []
    assert named("USR1") == [signal.SIGUSR1]
    with Signals(named("USR2")) as found:
        os.kill(os.getpid(), signal.SIGUSR2)
    assert name_of(found.received) == "SIGUSR2"


def test_what_is_ignored_stays_so_and_handlers_are_as_before() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending(), Signals() as found:
            os.kill(os.getpid(), signal.SIGHUP)
        assert found.received == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is not ending


MOMENTS = {  # where the process gets the signal, and what it says
    "start-up": ("vlatrain.cli.compose", "prepare", None),
    "data check": ("vlatrain.verbs.train", "load_run", "before the first checkpoint: nothing is kept"),
    "loading": ("vlatrain.verbs.train", "new_setup", "before the first checkpoint: nothing is kept"),
    "cache": ("vlatrain.verbs.train", "cache_prefix", "before the first checkpoint: nothing is kept"),
    "a step": ("vlatrain.training.loop.Loop", "_step", "after step 1 of 3; saved"),
    "evaluation": ("vlatrain.training.loop.Loop", "_evaluate", "after step 2 of 3; saved"),
    "test split": ("vlatrain.verbs.train", "scored", "all steps are done, and what was trained is saved"),
    "writing": ("vlatrain.verbs.train", "write_predictions", "all steps are done, and what was trained is saved"),
}
SCRIPT = """
import importlib, os, signal, sys
where, name, number, *words = sys.argv[1:]
module, _, owner = where.rpartition(".") if where.endswith("Loop") else (where, "", "")
place = importlib.import_module(module)
place = getattr(place, owner) if owner else place
call = getattr(place, name)
def interrupted(*args, **kwargs):
    os.kill(os.getpid(), int(number))
    return call(*args, **kwargs)
setattr(place, name, interrupted)
from vlatrain.cli.main import entry
sys.argv[1:] = words
entry()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", MOMENTS)
def test_at_every_moment_it_says_what_is_kept_and_the_command_goes_on(moment: str, number: int, tmp_path: Path) -> None:
    where, name, said = MOMENTS[moment]
    data = tmp_path / "t.jsonl"
    for number_of, color in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{number_of}.png")
    data.write_text(
        "".join(f'{{"image": "{n % 2}.png", "question": "colour?", "answer": "a{n % 2}"}}\n' for n in range(8))
    )
    folder = tmp_path / "run"
    words = [
        "task=vqa", "data=files", f"data.train={data}", f"data.eval={data}", f"data.test={data}", "trainer.max_steps=3",
        "trainer.batch_size=4", "trainer.eval_every=2", "trainer.threads=1", f"run.dir={folder}", "resume=auto",
    ]  # fmt: skip
    environment: dict[str, Any] = {**os.environ, "VLATRAIN_CACHE": str(tmp_path / "cache")}
    script = [sys.executable, "-c", SCRIPT, where, name, str(int(number)), *words]
    ran = subprocess.run(script, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert ran.returncode == 128 + number, ran.stderr
    assert "Traceback" not in ran.stderr
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith(f"Stopped by {name_of(number)}")
    assert said is None or said in last
    assert ("resume=auto" in last) == (folder / "checkpoints").exists()
    again = subprocess.run(
        [sys.executable, "-m", "vlatrain", *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
    )
    assert again.returncode == 0, again.stderr
    assert (folder / "metrics.json").exists()
