"""Evaluations take the share of the time that they are to take, in one process and in two whose clocks differ."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.gpu_free.ranks import ranks
from tests.training.conftest import SmallTask, load_adapter, make_config, make_loop, make_model, make_samples, same
from vlatrain.training import loop as looping
from vlatrain.training import stopwatch
from vlatrain.training.eval_schedule import TRIED_AFTER, EvalSchedule, tried
from vlatrain.training.progress import Progress


@pytest.mark.parametrize(
    ("share", "total", "cost", "expected"),
    [
        (0.2, 1000, 10.0, 50),  # a step of a second pays for a quarter of a second
        (0.5, 1000, 10.0, 20),
        (0.5, 1000, 0.1, 11),
        (0.2, 80, 10.0, 50),  # two are 20 s, as much as 80 steps pay for
        (0.2, 79, 10.0, None),  # the last one alone
    ],
)
def test_the_next_evaluation_is_when_it_is_paid_for(share: float, total: int, cost: float, expected: Any) -> None:
    progress = Progress(step=10, timed_samples=36, timed_seconds=9.0)
    schedule = EvalSchedule(every=5, share=share, total=total, step_size=4)
    assert schedule.trial_due(progress)
    schedule.plan(progress, 0.0, cost)
    assert progress.next_evaluation == expected
    assert not schedule.trial_due(progress)
    if expected:
        progress.step = expected
        assert schedule.due(progress)
        schedule.plan(progress, cost, cost)
        then = progress.next_evaluation or total
        assert then > expected
        assert 2 * cost <= share * (then + 2 * cost) + 1e-9, "all evaluations until then, of all the time until then"


@pytest.mark.parametrize(
    ("samples", "size", "processes"), [(1, 8, 1), (2, 8, 4), (10, 8, 1), (1000, 8, 1), (999, 8, 3)]
)
def test_the_trial_is_small_and_has_two_batches_of_each_process(samples: int, size: int, processes: int) -> None:
    stride, batch = tried(samples, size, processes)
    number = len(range(0, samples, stride))
    assert 1 <= batch <= size
    assert number <= max(2, 0.4 * samples)
    assert -(-number // batch) <= 2 * processes


class Clock:
    """Time passes when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Costly(SmallTask):
    """A step takes a second, and an evaluation a second for each sample."""

    def __init__(self, clock: Clock, pace: float = 1.0) -> None:
        super().__init__(make_model(), noise=0.0)
        self.clock, self.pace = clock, pace
        self.evaluated: list[tuple[float, int]] = []

    def loss(self, batch: Any) -> Any:
        self.clock.now += 1.0
        return super().loss(batch)

    def evaluate(self, samples: Any, batches: Any) -> Any:
        def slow(samples: Any, collate: Any, compute: Any) -> Any:
            def counted(batch: Any) -> Any:
                self.clock.now += self.pace * len(batch["ids"])
                return compute(batch)

            return batches(samples, collate, counted)

        self.evaluated.append((self.clock.now, len(samples)))
        return super().evaluate(samples, slow)


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, pace: float = 1.0, **trainer: Any) -> tuple[Any, Costly, Any]:
    """The loop, the task and the result of 240 steps with a fake clock; 12 samples are evaluated, which takes 12 s."""
    clock = Clock()
    task = Costly(clock, pace)
    for module in (looping, stopwatch):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    settings = {"max_steps": 240, "batch_size": 2, "log_every": 100, "save_every": 30, "keep": 99} | trainer
    loop = make_loop(folder, make_config(**settings), model=task.model, task=task, eval=make_samples(12, first=100))
    return loop, task, loop.run()


def test_evaluations_take_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, task, _ = train(tmp_path / "run", monkeypatch, eval_share=0.2, save_every=240)
    trial, *whole = task.evaluated
    assert (trial[0], trial[1]) == (TRIED_AFTER, 3)
    assert [number for _, number in whole] == [12] * len(whole)
    share = loop.progress.eval_seconds / task.clock.now
    assert loop.progress.eval_seconds == 3 + 12 * len(whole)
    assert 0.15 < share <= 0.2, "no more than allowed, and as often as goes"


def test_a_short_training_has_the_last_evaluation_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, task, result = train(tmp_path / "run", monkeypatch, eval_share=0.2, max_steps=60)
    assert [number for _, number in task.evaluated] == [3, 12]
    assert result.best_step == 60
    _, task, _ = train(tmp_path / "shorter", monkeypatch, eval_share=0.2, max_steps=5)
    assert [number for _, number in task.evaluated] == [12], "nothing to find out"


def test_a_training_that_continues_evaluates_where_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _, result = train(tmp_path / "whole", monkeypatch, eval_share=0.2, max_steps=120)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    steps = sorted(int(path.name.removeprefix("step_")) for path in (tmp_path / "again/checkpoints").glob("step_*"))
    for step in steps:
        if step > 30:
            shutil.rmtree(tmp_path / f"again/checkpoints/step_{step}")
    again, _, resumed = train(tmp_path / "again", monkeypatch, eval_share=0.2, max_steps=120)
    assert resumed.resumed_from == 30
    assert same(load_adapter(tmp_path / "whole"), load_adapter(tmp_path / "again"))
    assert loop.progress.eval_seconds == 3 + 2 * 12, (
        "the trial before it stopped, one evaluation after that, and the last"
    )
    assert (again.progress.eval_seconds, resumed.best_step) == (loop.progress.eval_seconds, result.best_step)


@pytest.mark.slow
def test_processes_evaluate_when_the_first_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(rank: int) -> list[Any]:
        loop, task, result = train(
            tmp_path / "run",
            monkeypatch,
            pace=1.0 + 9 * rank,
            eval_share=0.4,
            batch_size=1,
            max_steps=80,
            save_every=80,
        )
        return [result.best_step, loop.progress.next_evaluation, len(task.evaluated)]

    one, two = ranks(work, tmp_path)
    assert one == two
    assert one[2] > 3
