"""Two processes on a CPU, joined as torchrun joins them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.numerics import assert_close, near
from tests.training.conftest import SmallTask, load_adapter, make_config, make_loop, make_model, make_samples, same
from tests.training.test_interruptions import FORK, finish, lines, losses, wait
from vlatrain.config import UserError
from vlatrain.reporting.history import JsonLines
from vlatrain.training.signals import Interrupted

STEPS = {"epochs": 2, "save_every": 4, "eval_every": 4}


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    make_loop(tmp_path_factory.mktemp("warm") / "run", make_config(max_steps=1)).run()


def run(folder: Path, poison: str = "", delay: float = 0.0, dropout: float = 0.0, **trainer: Any) -> None:
    """A session in one process, alone or one of several."""
    rank = int(os.environ.get("RANK", "0"))
    model = make_model()
    for layer in model.layers:
        layer.adapter.dropout.p = dropout

    class Task(SmallTask):
        def loss(self, batch: Any) -> torch.Tensor:
            time.sleep(delay)
            return super().loss(batch)

    task = Task(model, noise=0.0)
    task.poison = poison
    config = make_config(**{**STEPS, **trainer})
    sinks = [JsonLines(folder / "metrics.jsonl")] if rank == 0 else []
    outcome: Any = None
    try:
        result = make_loop(folder, config, model=model, task=task, sinks=sinks, train=make_samples(21)).run()
        outcome = [result.steps, result.best_step, result.samples, result.processes, result.frozen_hash]
    except (UserError, Interrupted) as error:
        outcome = [type(error).__name__, str(error)]
    (folder / f"outcome{rank}.json").write_text(json.dumps(outcome))


def child(rank: int, port: int, folder: Path, settings: dict[str, Any]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    status = 1
    try:
        run(folder, **settings)
        torch.distributed.barrier()
        status = 0
    finally:
        os._exit(status)


def start(folder: Path, **settings: Any) -> list[Any]:
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [FORK.Process(target=child, args=(rank, port, folder, settings)) for rank in (0, 1)]
    for process in processes:
        process.start()
    return processes


def both(folder: Path, **settings: Any) -> list[Any]:
    assert [finish(process) for process in start(folder, **settings)] == [0, 0]
    return outcomes(folder)


def outcomes(folder: Path) -> list[Any]:
    return [json.loads((folder / f"outcome{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("batch", "accumulate"), [(2, 1), (3, 2)])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path, batch: int, accumulate: int) -> None:
    (tmp_path / "one").mkdir()
    run(tmp_path / "one", batch_size=2 * batch, accumulate=accumulate)
    first, second = both(tmp_path / "two", batch_size=batch, accumulate=accumulate)
    alone = json.loads((tmp_path / "one" / "outcome0.json").read_text())
    assert first == second == [*alone[:3], 2, alone[4]], "21 samples: the last step of an epoch is uneven"
    assert_close(load_adapter(tmp_path / "two"), load_adapter(tmp_path / "one"))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in one] == [step for step, _ in two]
    assert [value for _, value in two] == near([value for _, value in one])


def test_a_signal_to_one_process_stops_both_and_both_continue_bit_for_bit(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    both(whole, dropout=0.2, batch_size=2)
    processes = start(stopped, dropout=0.2, batch_size=2, delay=0.01)
    assert wait(processes[0], lambda: lines(stopped) >= 2)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert [finish(process) for process in processes] == [0, 0]
    assert [kind for kind, _ in outcomes(stopped)] == ["Interrupted", "Interrupted"]
    assert outcomes(stopped)[0] == outcomes(stopped)[1]
    both(stopped, dropout=0.2, batch_size=2)
    assert same(load_adapter(whole), load_adapter(stopped))
    assert losses(whole) == losses(stopped)


def test_what_goes_wrong_in_one_process_ends_both(tmp_path: Path) -> None:
    first, second = both(tmp_path / "run", poison="s7", batch_size=2)
    assert first == second
    assert first[0] == "UserError"
    assert "the loss is not finite" in first[1]
    assert "s7" in first[1]


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    module = ["-m", "tests.training.test_processes", str(tmp_path)]
    subprocess.run([*command, *module], check=True, cwd=Path(__file__).parents[2], timeout=300)
    assert [(outcome[0], outcome[2], outcome[3]) for outcome in outcomes(tmp_path)] == [(12, 42, 2)] * 2


if __name__ == "__main__":
    run(Path(sys.argv[1]), batch_size=2)
