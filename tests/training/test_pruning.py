"""The median rule for jobs of a sweep."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.training.test_loop import scripted
from vlatrain.runs import Outcome, SweepFolder
from vlatrain.training.pruning import STARTUP, MedianRule, behind


@pytest.mark.slow
def test_it_is_the_rule_of_optuna() -> None:
    optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install 'vlatrain[sweep]'")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
    rng = random.Random(0)
    seen = set()
    for _ in range(60):
        study = optuna.create_study(direction="maximize")
        others = [{step: rng.uniform(0, 100) for step in (10, 20, 30)} for _ in range(rng.randint(0, 7))]
        for scores in others:
            study.add_trial(optuna.trial.create_trial(value=scores[30], intermediate_values=scores))
        own = {step: rng.uniform(0, 100) for step in (10, 20)}
        trial = study.ask()
        for step, score in own.items():
            trial.report(score, step)
        expected = pruner.prune(study, study._storage.get_trial(trial._trial_id))
        assert behind(own, others, 20) == expected
        seen.add(expected)
    assert seen == {True, False}


def test_what_others_have_not_reached_does_not_count() -> None:
    others = [{10: 90.0}] * STARTUP
    assert behind({10: 80.0}, others, 10)
    assert not behind({10: 80.0}, others[1:], 10), "too few to go by"
    assert not behind({10: 80.0, 20: 1.0}, others, 20), "none has been there"
    assert not behind({10: 95.0, 20: 1.0}, [{20: 90.0}] * STARTUP, 20), "its best counts"


def test_the_rule_reads_the_other_jobs_histories(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path / "sweep")
    sweep.begin(resume=False)
    for number in range(STARTUP + 1):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        records = [{"step": 10, "loss": 1.0}, {"step": 10, "eval/accuracy": 50.0 + number}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        sweep.note(Outcome(number, [f"seed={number}"], folder))
    assert MedianRule(sweep.path, tmp_path / "run-0", "accuracy")(10)
    assert not MedianRule(sweep.path, tmp_path / "run-4", "accuracy")(10)
    sweep.begin(resume=True)  # those of before count, too
    assert MedianRule(sweep.path, tmp_path / "run-1", "accuracy")(10)


def test_a_training_that_is_behind_ends_and_keeps_its_best(small: SimpleNamespace) -> None:
    loop, task = scripted(small, [10.0, 30.0, 20.0, 99.0], epochs=4)
    asked: list[int] = []
    object.__setattr__(loop.trained, "prune", lambda step: asked.append(step) or step == 18)
    result = loop.run()
    assert asked == [6, 12, 18]
    assert (result.steps, result.best_step, result.pruned) == (18, 12, 18)
    assert len(task.weights) == 3
