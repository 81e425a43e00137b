from __future__ import annotations

from pathlib import Path

import pytest

from tests.reporting.pages.folders import CURVE, made_run
from vlatrain.config import UserError
from vlatrain.reporting.pages.reading import select, snapshot
from vlatrain.runs import Outcome, SweepFolder


def test_a_run_says_how_far_it_came(tmp_path: Path) -> None:
    assert snapshot(made_run(tmp_path / "whole")).state_in_words == "finished"
    stopped = snapshot(made_run(tmp_path / "half", metrics=None, history=CURVE[:2]))
    assert (stopped.state_in_words, stopped.score, stopped.metric) == ("stopped at step 10 of 20", None, "accuracy")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.json", '{"metric": "acc', "metrics.json cannot be read"),
        ("metrics.json", "[1]", "metrics.json holds no JSON object"),
        ("metrics.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2, "lo', "metrics.jsonl: 1 lines cannot be read"),
        ("run.json", "\x00", "run.json cannot be read"),
        ("config.yaml", "task: [", "config.yaml: not readable as YAML"),
    ],
)
def test_what_is_damaged_is_said_and_the_rest_is_read(file: str, content: str, said: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    (run / file).write_text(content)
    found = snapshot(run)
    assert any(said in problem for problem in found.problems)
    assert found.folder == run
    assert found.state == ("damaged" if file == "metrics.json" else "finished")


def test_what_is_no_run_is_told_of_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as raised:
        select([tmp_path / "empty", tmp_path / "gone"])
    assert [problem.rpartition(": ")[2] for problem in raised.value.problems] == [
        "is neither a run, nor a sweep, nor a folder with runs in it",
        "there is no such folder",
    ]


def test_a_sweep_is_its_jobs_with_those_that_failed(tmp_path: Path) -> None:
    run = made_run(tmp_path / "elsewhere" / "one")
    sweep = SweepFolder(tmp_path / "sweep")
    sweep.note(Outcome(0, ["adapter.dim=4"], run))
    sweep.note(Outcome(1, ["adapter.dim=8"], failure="no room"))
    sweep.note(Outcome(2, ["adapter=ia3"], left_out="it does not fit"))
    selection = select([sweep.path])
    assert [one.folder for one in selection.runs] == [run]
    assert selection.failures == [("adapter.dim=8", "failed: no room"), ("adapter=ia3", "left out: it does not fit")]
    assert not selection.single
    assert selection.folder == sweep.path


def test_a_folder_is_the_runs_below_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made_run(tmp_path / "outputs" / "vqa" / name)
    assert {run.folder.name for run in select([tmp_path / "outputs"]).runs} == {"a", "b"}
    assert select([tmp_path / "outputs" / "vqa" / "a"]).single


def test_less_of_some_scores_is_better(tmp_path: Path) -> None:
    found = snapshot(made_run(tmp_path / "run", overrides=["task=retrieval"]))
    assert found.higher_is_better("mean_recall")
    assert not found.higher_is_better("image_to_text_median_rank")
