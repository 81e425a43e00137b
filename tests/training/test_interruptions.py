"""A training that is killed again and again ends with the same bits as one that is left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import SmallTask, load_adapter, make_config, make_loop, make_model, same
from vlatrain.reporting.history import JsonLines
from vlatrain.training.signals import Interrupted

FORK = multiprocessing.get_context("fork")  # the imports are done: a killed process costs milliseconds
SETTINGS = {"epochs": 3, "save_every": 3, "eval_every": 5, "keep": 1}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What torch imports with its first step is imported once, here, and not in every session."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make_loop(tmp_path_factory.mktemp("warm") / "run", make_config(max_steps=1)).run()
    torch.set_num_threads(threads)


class Slow(SmallTask):
    """Takes its time, so that there is time to be killed in."""

    def __init__(self, model: Any, folder: Path, loss_seconds: float = 0.0, evaluation_seconds: float = 0.0) -> None:
        super().__init__(model)
        self.folder, self.loss_seconds, self.evaluation_seconds = folder, loss_seconds, evaluation_seconds

    def loss(self, batch: Any) -> torch.Tensor:
        time.sleep(self.loss_seconds)
        return super().loss(batch)

    def evaluate(self, samples: Any, batches: Any) -> Any:
        if self.evaluation_seconds:
            (self.folder / "evaluating").touch()
        time.sleep(self.evaluation_seconds)
        return super().evaluate(samples, batches)


def train(folder: Path, trainer: dict[str, Any], **slow: float) -> None:
    """One session of a run, as a process of its own."""
    os.setsid()
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(number, handler)  # who runs the tests in the background ignores them
    fsync, delay = os.fsync, slow.pop("save_seconds", 0.0)
    os.fsync = lambda descriptor: (time.sleep(delay), fsync(descriptor))[1]  # a slow disk
    model = make_model()
    task = Slow(model, folder, **slow)
    config = make_config(**{**SETTINGS, **trainer})
    sinks = [JsonLines(folder / "metrics.jsonl")]
    status = 0
    try:
        result = make_loop(folder, config, model=model, task=task, sinks=sinks).run()
        assert result.evaluation is not None
        (folder / "result.json").write_text(json.dumps([result.steps, result.best_step, result.evaluation.metrics]))
    except Interrupted as stop:
        (folder / "message").write_text(str(stop))
        status = stop.exit_status
    except KeyboardInterrupt:
        status = 99
    sys.exit(status)  # with all that Python does in the end, as joining the workers


def start(folder: Path, trainer: dict[str, Any], **slow: float) -> Any:
    folder.mkdir(exist_ok=True)
    process = FORK.Process(target=train, args=(folder, trainer), kwargs=slow)
    process.start()
    return process


def finish(process: Any, seconds: float = 60.0) -> int:
    until = time.monotonic() + seconds
    while process.is_alive():  # join() would wait for a killed process's workers too
        assert time.monotonic() < until, "it hangs"
        time.sleep(0.002)
    return process.exitcode


def wait(process: Any, reached: Callable[[], bool]) -> bool:
    """Until it is so, or the process has ended."""
    while not reached():
        if not process.is_alive():
            return False
        time.sleep(0.0005)
    return True


def saving(folder: Path) -> bool:
    return any(re.fullmatch(r"step_\d+\.tmp", path.name) for path in folder.glob("checkpoints/*"))


def losses(folder: Path) -> list[tuple[int, float]]:
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [(line["step"], line.get("loss", line.get("eval/accuracy"))) for line in lines]


def agree(whole: Path, killed: Path) -> None:
    assert same(load_adapter(whole), load_adapter(killed))
    assert losses(whole) == losses(killed), "the record has every step once"
    assert (whole / "result.json").read_text() == (killed / "result.json").read_text()
    assert not list((killed / "checkpoints").glob("*.tmp"))


def lines(folder: Path) -> int:
    return (folder / "metrics.jsonl").read_bytes().count(b"\n") if (folder / "metrics.jsonl").exists() else 0


@pytest.mark.parametrize(
    "trainer",
    [{}, {"workers": 2}, {"batch_size": 2, "accumulate": 2}, {"log_every": 4, "save_every": 1, "keep": 0}],
    ids=str,
)
def test_killed_at_random_steps(tmp_path: Path, trainer: dict[str, Any]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(start(whole, trainer)) == 0
    draw = random.Random(str(trainer))
    kills = 0
    for _ in range(4):
        process = start(killed, trainer, loss_seconds=0.002)
        target = lines(killed) + draw.randrange(1, 8)
        if wait(process, lambda target=target: lines(killed) >= target):
            time.sleep(draw.random() * 0.01)
            process.kill()
        kills += finish(process) == -signal.SIGKILL
    assert kills >= 2
    assert finish(start(killed, trainer)) == 0
    agree(whole, killed)


@pytest.mark.slow
def test_killed_while_saving(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(start(whole, {})) == 0
    for save in range(3):
        process = start(killed, {}, save_seconds=0.05)
        # the first save of this session, then the second, then the third
        for _ in range(save + 1):
            assert wait(process, lambda: not saving(killed))
            assert wait(process, lambda: saving(killed))
        time.sleep(0.02 * save)
        process.kill()
        assert finish(process) == -signal.SIGKILL
        assert saving(killed), "it was not killed while saving"
    assert finish(start(killed, {})) == 0
    agree(whole, killed)


@pytest.mark.parametrize(
    ("number", "status", "trainer"),
    [
        (signal.SIGTERM, 143, {}),
        (signal.SIGINT, 130, {}),
        pytest.param(signal.SIGTERM, 143, {"workers": 2}, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, {}, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 128 + signal.SIGUSR1, {"signal": "USR1"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_signal_saves_says_how_to_continue_and_continues(
    tmp_path: Path, number: int, status: int, trainer: dict[str, Any]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert finish(start(whole, trainer)) == 0
    process = start(stopped, trainer, loss_seconds=0.005)
    assert wait(process, lambda: lines(stopped) >= 4)
    os.killpg(process.pid, number)  # as a terminal and a cluster do: the workers get it too
    assert finish(process) == status
    step = losses(stopped)[-1][0]
    assert (stopped / "checkpoints" / f"step_{step}").is_dir(), "it saved where it was"
    message = (stopped / "message").read_text()
    assert f"after step {step} of 18; saved" in message
    assert f"resume=auto run.dir={stopped}" in message
    assert finish(start(stopped, trainer)) == 0
    agree(whole, stopped)


def test_a_signal_in_an_evaluation_saves_and_the_evaluation_is_done_again(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert finish(start(whole, {})) == 0
    process = start(stopped, {}, evaluation_seconds=0.2)
    assert wait(process, lambda: (stopped / "evaluating").exists())
    process.terminate()
    assert finish(process) == 143
    assert (stopped / "checkpoints" / "step_5").is_dir()
    assert losses(stopped)[-1][0] == 5
    assert finish(start(stopped, {})) == 0
    agree(whole, stopped)


def test_a_second_ctrl_c_quits_at_once(tmp_path: Path) -> None:
    process = start(tmp_path / "run", {}, evaluation_seconds=50.0)
    assert wait(process, lambda: (tmp_path / "run" / "evaluating").exists())
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.05)
    assert finish(process, 20.0) == 99
