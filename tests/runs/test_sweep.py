"""What the jobs of a sweep leave in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlatrain.config import UserError
from vlatrain.runs import Outcome, SweepFolder
from vlatrain.runs import sweep as runs_sweep
from vlatrain.runs.sweep import BEGUN

DONE = {"metric": "accuracy", "metrics": {"accuracy": 61.5, "f1": 3}, "parameters": {"percent": 2.5}, "memory": None}


def test_a_job_leaves_its_outcome_for_another_process(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path / "sweep")
    sweep.begin(resume=False)
    left = [
        Outcome(10, ["seed=1"], Path("run"), DONE, seconds=2.5),
        Outcome(2, ["seed=2"], failure="why"),
        Outcome(3, ["task=vqa"], left_out="cannot"),
    ]
    for one in left:
        sweep.note(Outcome(one.number, failure=BEGUN))
        sweep.note(one)
    (sweep.jobs / "0004.json").write_text('{"number"')  # cut short
    assert sweep.outcomes() == [left[1], left[2], left[0]]
    assert [one.done for one in left] == [True, False, True]


@pytest.mark.parametrize("change", [("61.5", "91.5"), ('"number": 1', '"number": 0'), ('"sha256": "', '"sha256": "0')])
def test_an_outcome_that_has_changed_is_not_believed(
    change: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.begin(resume=False)
    sweep.note(Outcome(1, ["seed=1"], metrics=DONE))
    file = sweep.jobs / "0001.json"
    file.write_text(file.read_text().replace(*change))
    assert sweep.outcomes() == []
    assert "0001.json is not believed (has changed since it was written)" in caplog.text


def test_an_outcome_in_the_place_of_another_is_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.note(Outcome(1, ["seed=1"], metrics=DONE))
    (sweep.jobs / "0001.json").rename(sweep.jobs / "0002.json")
    assert sweep.outcomes() == []
    assert "0002.json is not believed (is that of another job)" in caplog.text


def test_outcomes_of_before_have_no_checksum(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.note(one := Outcome(1, ["seed=1"], metrics=DONE))
    file = sweep.jobs / "0001.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "sha256"}))
    assert sweep.outcomes() == [one]


def test_figures() -> None:
    one = Outcome(0, metrics=DONE)
    assert (one.score, one.scores) == (61.5, {"accuracy": 61.5, "f1": 3.0})
    assert (one.figure("f1"), one.figure("trainable_percent")) == (3.0, 2.5)
    assert one.figure("peak_mb") is one.figure("wall_s") is one.figure("cider_d") is None
    assert Outcome(0).score is None


def test_a_sweep_is_found_by_its_overrides_when_it_goes_on(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.begin(resume=False)
    sweep.note(Outcome(0, ["seed=1", "adapter.dim=4"], Path("a"), DONE))
    sweep.note(Outcome(1, ["seed=2", "adapter.dim=4"], Path("b"), failure=BEGUN))
    with pytest.raises(UserError, match="holds a sweep of 2 jobs; resume=auto goes on with it"):
        sweep.begin(resume=False)
    assert len(sweep.outcomes()) == 2, "a refused sweep takes nothing away"
    for _ in range(2):  # and if it is stopped at once, it is found again
        sweep.begin(resume=True)
        assert not sweep.outcomes()
        first = sweep.before(["adapter.dim=4", "seed=1", "resume=auto"])
        assert first is not None
        assert first.done
        second = sweep.before(["seed=2", "adapter.dim=4"])
        assert second is not None
        assert (second.folder, second.done) == (Path("b"), False)
        assert sweep.before(["seed=3", "adapter.dim=4"]) is None
    with pytest.raises(UserError, match="holds a sweep"):
        sweep.begin(resume=False)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"choose another hydra\.sweep\.dir"):
        SweepFolder(tmp_path / "file" / "sweep").begin(resume=False)


def test_other_processes_wait_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_sweep, "PATIENCE", 0.3)
    sweep = SweepFolder(tmp_path)
    sweep.begin(resume=False)
    sweep.announce("an earlier start")
    with pytest.raises(UserError, match="the first process has not begun the sweep"):
        sweep.wait("this start")
    sweep.announce("this start")
    sweep.wait("this start")


def test_other_processes_wait_for_what_came_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_sweep, "UNTIL_SCORED", 0.2)
    sweep = SweepFolder(tmp_path / "sweep")
    sweep.note(Outcome(3, failure=BEGUN))
    with pytest.raises(UserError, match="has not ended job 3 within"):
        sweep.ended(3)
    sweep.note(Outcome(3, metrics=DONE))
    assert sweep.ended(3).score == 61.5
