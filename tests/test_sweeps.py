"""Sweeps by other launchers and sweepers than Hydra's own: what came of the jobs is read from what they left."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins

from vlatrain import verbs
from vlatrain.cli import main as cli
from vlatrain.cli.compose import prepare
from vlatrain.cli.overrides import Request
from vlatrain.config import UserError
from vlatrain.runs import run_folder
from vlatrain.verbs import Verb

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The plugins of `tests/plugins`, known to Hydra, in a folder of its own."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    module = importlib.import_module("hydra_plugins.elsewhere")
    for plugin in (module.Elsewhere, module.Scored):
        Plugins.instance().register(plugin)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    return module


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training scores its seed, in this process; seed 3 is refused."""

    def call(config: Any) -> Any:
        if config.seed == 3:
            raise UserError("refused")
        metrics = {"metric": "accuracy", "metrics": {"accuracy": float(config.seed)}}
        return types.SimpleNamespace(folder=run_folder(config), metrics=metrics)

    module = types.ModuleType("scored_calls")
    module.call = call  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scored_calls", module)
    monkeypatch.setattr(verbs, "VERBS", dict.fromkeys(verbs.VERBS, Verb("", "scored_calls.call")))


@pytest.mark.slow
def test_jobs_in_processes_of_their_own_end_in_the_same_table(
    elsewhere: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-m", "hydra/launcher=elsewhere", "seed=1,2,3", "run.name=s"]) == 1
    told = capfd.readouterr()
    assert "failed: RuntimeError: broken" in told.out
    assert "2 of 3 runs failed" in told.out
    assert "error the sweeper or launcher failed: RuntimeError: a worker process was terminated" in told.err
    (file,) = (tmp_path / "outputs" / "sweeps").glob("*/sweep.json")
    good, broken, killed = json.loads(file.read_text())
    assert (good["score"], good["failure"], good["varied"]) == (81.25, None, {"seed": "1"})
    assert broken["failure"] == "RuntimeError: broken"
    assert "RuntimeError: broken" in (tmp_path / broken["folder"] / "run.log").read_text()
    assert killed["failure"].startswith("ended without saying why")


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere", "scores")
def test_a_sweeper_gets_the_score_of_each_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep" / "jobs").mkdir(parents=True)
    (tmp_path / "sweep" / "jobs" / "0009.json").write_text("{}")  # of an earlier sweep
    assert cli.main(["-m", "hydra/sweeper=scored", "hydra.sweep.dir=${run.dir}", "run.dir=sweep", "seed=1,3"]) == 1
    assert json.loads(Path("scores.json").read_text()) == ["maximize", 1.0, None]
    told = capsys.readouterr().out
    assert told.startswith("hydra.sweeper.direction=maximize: the sweeper gets each run's score, and more is better\n")
    assert "1 of 2 runs failed" in told
    assert len(json.loads(Path("sweep/sweep.json").read_text())) == 2


@pytest.mark.usefixtures("elsewhere")
def test_what_only_a_sweeper_understands_is_passed_on() -> None:
    words = ["hydra/sweeper=scored", "hydra.sweeper.direction=minimize", "optim.lr=interval(0.1,1)", "seed=1"]
    prepared = prepare(Request("train", words, multirun=True))
    assert sorted(prepared.overrides) == sorted(words)
    assert prepared.swept == ("optim.lr",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=interval(1,9)"], "seed=interval(1,9): a range, and the sweeper only tries values one by one"),
        (["hydra/launcher=nowhere"], "hydra/launcher=nowhere: there is no such launcher; plugins bring others"),
    ],
)
def test_what_needs_a_plugin_says_so(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-m", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error {said}")


@pytest.mark.usefixtures("scores")
def test_optuna_gets_the_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    monkeypatch.chdir(tmp_path)
    trials = ["hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"]
    cli.main(["-m", "hydra/sweeper=optuna", *trials, "seed=choice(1,3,9)", "hydra.sweep.dir=sweep"])
    assert "best_value: 9.0" in Path("sweep/optimization_results.yaml").read_text()


@pytest.mark.slow
def test_joblib_runs_the_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text("no JSON")
    words = ["data=files", "data.train=bad.jsonl", "seed=1,2"]
    assert cli.main(["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *words]) == 1
    (file,) = (tmp_path / "outputs" / "sweeps").glob("*/sweep.json")
    assert ["not JSON" in row["failure"] for row in json.loads(file.read_text())] == [True, True]
