"""Sweeps by other launchers and sweepers than Hydra's own: what came of the jobs is read from what they left."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.plugins import Plugins

import vlatrain
from vlatrain import verbs
from vlatrain.cli import main as cli
from vlatrain.cli.compose import Prepared, prepare
from vlatrain.cli.jobs import Jobs
from vlatrain.cli.overrides import Request
from vlatrain.config import UserError
from vlatrain.runs import run_folder, steps_in
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
def scores(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Training scores its seed, in this process; seed 3 is refused, and Ctrl-C ends seed 2 where it is not to go on."""

    def call(config: Any) -> Any:
        calls.append(config)
        if config.seed == 3:
            raise UserError("refused")
        if config.seed == 2 and config.resume == "no":
            run_folder(config).mkdir(parents=True)
            raise KeyboardInterrupt
        metrics = {"metric": "accuracy", "metrics": {"accuracy": float(config.seed)}}
        return types.SimpleNamespace(folder=run_folder(config), metrics=metrics)

    calls: list[Any] = []
    module = types.ModuleType("scored_calls")
    module.call = call  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scored_calls", module)
    monkeypatch.setattr(verbs, "VERBS", dict.fromkeys(verbs.VERBS, Verb("", "scored_calls.call")))
    return calls


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
def test_a_sweeper_gets_the_score_of_each_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-m", "hydra/sweeper=scored", "hydra.sweep.dir=${run.dir}", "run.dir=sweep", "seed=1,3"]) == 1
    assert json.loads(Path("scores.json").read_text()) == ["maximize", 1.0, None]
    told = capsys.readouterr().out
    assert told.startswith("hydra.sweeper.direction=maximize: the sweeper is given each run's accuracy\n")
    assert "1 of 2 runs failed" in told
    assert len(json.loads(Path("sweep/sweep.json").read_text())) == 2


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scores: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", "seed=1,2", "adapter=lora", "hydra.sweep.dir=sweep"]
    assert cli.main(words) == 130
    told = capsys.readouterr().out
    assert re.search(r"\[1/2\] seed=1: accuracy 1.00 %, \d+ s", told)
    assert re.search(r"\[2/2\] seed=2: stopped, \d+ s", told)
    assert "Not run to the end: 1 of 2 jobs: seed=2 (begun)" in told
    assert f"To go on: vlatrain {' '.join(words[:-1])} resume=auto hydra.sweep.dir=sweep" in told
    begun = run_folder(scores[1])

    assert cli.main(words) == 2
    assert "hydra.sweep.dir=sweep: holds a sweep of 2 jobs; resume=auto goes on with it" in capsys.readouterr().err
    assert len(scores) == 2

    assert cli.main([*words, "resume=auto"]) == 0
    told = capsys.readouterr().out
    assert [config.seed for config in scores] == [1, 2, 2]
    assert run_folder(scores[2]) == begun
    assert scores[2].resume == "auto"
    assert re.search(r"\[1/2\] seed=1: as before, accuracy 1.00, \d+ s", told)
    assert scores_in(Path("sweep/sweep.json")) == [(1.0, None), (2.0, None)]


def test_a_job_knows_how_many_to_come_share_its_prefix() -> None:
    values = (
        ("adapter.dim=4", "adapter.dim=8"),
        ("adapter.points=[decoder]", "adapter.points=[vision]"),
        ("seed=1", "seed=2"),
    )
    jobs = Jobs(Request("train"), (), lambda config: [], Prepared([], planned=tuple(itertools.product(*values))))
    assert [jobs._alike(number) for number in range(9)] == [4, 3, 4, 3, 2, 1, 2, 1, 1]


def scores_in(file: Path) -> list[tuple[float | None, str | None]]:
    return [(row["score"], row["failure"]) for row in json.loads(file.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["hydra.mode=MULTIRUN", "hydra.job.chdir=true"],
        ["-m", "hydra.sweep.subdir=${hydra.job.num}"],
    ],
)
def test_however_a_sweep_is_asked_for(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scores: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "seed=1,4"]) == 0
    (file,) = (tmp_path / "outputs" / "sweeps").glob("*/sweep.json")
    assert scores_in(file) == [(1.0, None), (4.0, None)]
    assert not run_folder(scores[0]).is_absolute()
    assert Path.cwd() == tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [([], [1.0, 4.0]), (["seed=5,6"], [5.0, 6.0]), (["optim.lr=1e-3,1e-4"], [1.0, 1.0, 4.0, 4.0])],
)
def test_a_sweep_that_a_file_asks_for(
    words: list[str], expected: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scores: list[Any]
) -> None:
    """The file names what is varied; the command line goes before it, and may vary more."""
    monkeypatch.chdir(tmp_path)
    settings = {"mode": "MULTIRUN", "sweeper": {"params": {"seed": "1,4"}}}
    (tmp_path / "mine.yaml").write_text(json.dumps({"defaults": ["train", "_self_"], "hydra": settings}))
    assert cli.main(["--config-dir", str(tmp_path), "-cn", "mine", *words]) == 0
    (file,) = (tmp_path / "outputs" / "sweeps").glob("*/sweep.json")
    assert sorted(score for score, _ in scores_in(file)) == expected


@pytest.mark.slow
def test_a_sweep_from_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scores: list[Any]) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = vlatrain.sweep("seed=1,3", "adapter=lora")
    assert (first.score, second.failure) == (1.0, "refused")
    assert first.run is None, "nothing was written there"
    (again,) = vlatrain.sweep("seed=1")  # in the same second, in this process
    assert again.score == 1.0
    assert len(scores) == 3
    assert len([*(tmp_path / "outputs" / "sweeps").iterdir()]) == 2
    with pytest.raises(UserError, match=r"adapter\.dmi"):
        vlatrain.sweep("adapter.dmi=3,4")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep.prune=median"], "sweep.prune: is for a sweep's jobs; -m makes one"),
        (["-m", "seed=1,2", "sweep.objectives=[acuracy]"], "sweep.objectives: acuracy: must be one of accuracy, "),
        (["-m", "seed=1,2", "sweep.objectives=[accuracy,peak_mb]"], "Hydra's own sweeper goes by none"),
        (["-m", "seed=1,2", "resume=auto"], "resume=auto: say which sweep with hydra.sweep.dir=FOLDER"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


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


OPTUNA = [
    "-m",
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_jobs=1",
    "hydra.sweeper.sampler.seed=0",
    "hydra.sweep.dir=sweep",
]


@pytest.mark.slow
@pytest.mark.usefixtures("scores")
def test_optuna_is_told_scores_and_failures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*OPTUNA, "hydra.sweeper.n_trials=5", "seed=choice(1,3,9)"]) == 1
    assert "best_value: 9.0" in Path("sweep/optimization_results.yaml").read_text()
    failed = sum(row["failure"] == "refused" for row in json.loads(Path("sweep/sweep.json").read_text()))
    assert failed
    assert f"{failed} of 5 runs failed" in capsys.readouterr().out


@pytest.mark.slow
def test_optuna_is_given_several_objectives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    monkeypatch.chdir(tmp_path)

    def call(config: Any) -> Any:
        rank = config.adapter.dim
        metrics = {"metric": "accuracy", "metrics": {"accuracy": float(rank)}, "parameters": {"percent": rank / 10}}
        return types.SimpleNamespace(folder=None, metrics=metrics)

    module = types.ModuleType("sized_calls")
    module.call = call  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sized_calls", module)
    monkeypatch.setattr(verbs, "VERBS", dict.fromkeys(verbs.VERBS, Verb("", "sized_calls.call")))
    words = ["sweep.objectives=[accuracy,trainable_percent]", "adapter.dim=choice(4,8)", "hydra.sweeper.n_trials=6"]
    assert cli.main([*OPTUNA, *words]) == 0
    assert "hydra.sweeper.direction=[maximize,minimize]: the sweeper is given each run's accuracy and trainable" in (
        capsys.readouterr().out
    )
    solutions = yaml.safe_load(Path("sweep/optimization_results.yaml").read_text())["solutions"]
    assert {tuple(one["values"]) for one in solutions} == {(4.0, 0.4), (8.0, 0.8)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "launcher"),
    [
        ("hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_submitit_launcher", ["hydra/launcher=submitit_local"]),
        ("hydra_ray_launcher", ["hydra/launcher=ray"]),
    ],
)
def test_launchers_run_the_jobs(
    plugin: str, launcher: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One of three jobs fails: its loss is not finite."""
    pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"{plugin} is not installed")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["-m", *launcher, "optim.lr=1e-3,1e30,2e-3", *TINY]) == 1
    (file,) = (tmp_path / "outputs" / "sweeps").glob("*/sweep.json")
    rows = json.loads(file.read_text())
    assert [row["score"] is not None for row in rows] == [True, False, True]
    assert "the loss is not finite" in rows[1]["failure"]
    assert "1 of 3 runs failed" in capfd.readouterr().out


TINY = ["data.train_size=32", "data.eval_size=8", "trainer.batch_size=8", "trainer.max_steps=3", "trainer.cache=off"]


@pytest.mark.slow
def test_a_sweep_that_was_killed_ends_in_the_same_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of three jobs is killed after a checkpoint."""
    monkeypatch.chdir(tmp_path)
    words = ["-m", "seed=1,2,3", *TINY, "trainer.max_steps=12", "trainer.save_every=2", "trainer.eval_every=6"]
    assert cli.main([*words, "hydra.sweep.dir=whole"]) == 0
    whole = json.loads(Path("whole/sweep.json").read_text())
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith("[")]) == 3
    assert len(out.splitlines()) < 30, "a line a job and the tables"

    command = [sys.executable, "-m", "vlatrain", *words, "hydra.sweep.dir=killed"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGINS.parents[1]), *sys.path])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    job = Path("killed/jobs/0001.json")
    deadline = time.monotonic() + 200
    while not (job.exists() and steps_in(Path(json.loads(job.read_text())["folder"] or "none") / "checkpoints")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()

    assert cli.main([*words, "hydra.sweep.dir=killed", "resume=auto"]) == 0
    again = json.loads(Path("killed/sweep.json").read_text())
    kept = ("number", "varied", "metric", "score", "metrics", "trainable_percent", "failure")
    assert [[row[key] for key in kept] for row in again] == [[row[key] for key in kept] for row in whole]
    second = json.loads((Path(again[1]["folder"]) / "metrics.json").read_text())
    assert second["training"]["resumed_from"]
    adapters = [Path(row[1]["folder"], "adapter", "adapter_model.safetensors").read_bytes() for row in (whole, again)]
    assert adapters[0] == adapters[1]


@pytest.mark.slow
def test_a_sweep_over_two_processes_goes_on(tmp_path: Path) -> None:
    words = ["-m", "seed=1,2", *TINY, "hydra.sweep.dir=sweep"]
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "vlatrain", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGINS.parents[1]), *sys.path])}
    environment["OMP_NUM_THREADS"] = "1"
    for more, said in (([], "[2/2] seed=2: accuracy"), (["resume=auto"], "[2/2] seed=2: as before, accuracy")):
        ran = subprocess.run(
            [sys.executable, *command, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count(said) == 1
        assert "2 runs; the table" in ran.stdout


@pytest.mark.slow
def test_optuna_over_two_processes_tries_the_same_in_both(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    drawn = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.n_trials=4",
        "optim.lr=interval(1e-4,1e-2)",
    ]
    sampler = ["hydra.sweeper.sampler.n_startup_trials=2"]  # from then on it goes by scores
    words = ["-m", *drawn, *sampler, *TINY, "hydra.sweep.dir=sweep"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "vlatrain", *words]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PLUGINS.parents[1]), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    assert "hydra.sweeper.sampler.seed=0: all processes choose the same trials" in ran.stdout
    assert "4 runs; the table" in ran.stdout
    rows = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert len({row["varied"]["optim.lr"] for row in rows}) == 4
