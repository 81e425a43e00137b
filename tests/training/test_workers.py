"""How many processes load the data: none on a CPU, on a GPU by the time that a pass takes to load, measured here on a slow task."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.training.conftest import SmallTask, make_model, make_samples
from vlatrain.config import TrainerConfig
from vlatrain.training import workers
from vlatrain.training.workers import choose_workers, cores, workers_for

CPU, GPU = torch.device("cpu"), torch.device("cuda")
AUTO = TrainerConfig(workers="auto")


class Slow(SmallTask):
    """Loads a sample in 5 ms, the first one of all in 200."""

    def collate(self, samples: Any) -> Any:
        time.sleep(0.005 * len(samples) + (0 if self.seen else 0.2))
        self.seen.append([sample.id for sample in samples])
        random.random()
        return {}


def test_a_number_is_taken_and_a_cpu_loads_by_itself() -> None:
    task: Any = SimpleNamespace()  # is not asked
    assert choose_workers(TrainerConfig(workers=3), task, make_samples(4), 2, CPU) == 3
    assert choose_workers(AUTO, task, make_samples(4), 2, CPU) == 0
    assert choose_workers(AUTO, task, [], 2, GPU) == 0


def test_on_a_gpu_a_few_samples_are_timed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(workers, "cores", lambda: 64)
    task: Any = Slow(make_model())
    state = random.getstate()
    chosen = choose_workers(AUTO, task, make_samples(100), 32, GPU)
    assert random.getstate() == state
    assert sum(map(len, task.seen)) == workers.TIMED + 1
    assert 8 <= chosen <= 12  # 160 ms a pass and a little, 20 ms for each
    assert f"Workers: {chosen}; a pass takes" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "cores", "expected"),
    [(0.001, 64, 0), (0.003, 64, 1), (0.1, 64, 5), (0.1, 4, 3), (0.1, 1, 1), (9.0, 64, workers.MOST)],
)
def test_as_many_as_a_pass_needs_and_cores_allow(seconds: float, cores: int, expected: int) -> None:
    assert workers_for(seconds, cores) == expected


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda process: set(range(12)))
    assert cores() == 12
    monkeypatch.setattr(workers, "neighbours", lambda: [0, 1, 2, 3])
    assert cores() == 3
