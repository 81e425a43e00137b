from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.commands import command, tiny_run
from tests.conftest import make_samples
from tests.gpu_free.ranks import ranks
from vlatrain.backbones.families.dual import Dual
from vlatrain.config import DataConfig, TaskConfig
from vlatrain.data import load
from vlatrain.training.signals import Stopped


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    points = ["model=tiny_clip", "adapter.points=['*']", "adapter.init=normal", "adapter.init_std=0.3"]
    return tiny_run(tmp_path_factory.mktemp("runs") / "clip", "retrieval", *points)


@pytest.mark.slow
def test_an_evaluation_says_how_fast_it_was(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("eval", f"run={run}", f"output={tmp_path / 'out'}", "trainer.eval_batch_size=4") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["metrics"] == json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["speed"]["wall_s"] > 0
    assert metrics["speed"]["samples_per_s"] > 0
    assert "samples/s" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_score_a_run_together(count: int, run: Path, tmp_path: Path) -> None:
    """Ten samples in batches of three; one folder, with what one process finds, and a refusal is everyone's."""
    words = ("eval", f"run={run}", "trainer.eval_batch_size=3", "trainer.threads=1")
    assert command(*words, f"output={tmp_path / 'one'}") == 0
    before = {folder.name for folder in (run / "evaluations").glob("*")}
    assert ranks(lambda _: command(*words), tmp_path, count=count) == [0] * count
    (folder,) = {folder.name for folder in (run / "evaluations").glob("*")} - before
    alone, together = (
        json.loads((path / "metrics.json").read_text()) for path in (tmp_path / "one", run / "evaluations" / folder)
    )
    assert together["machine"]["processes"] == count
    assert together["metrics"] == alone["metrics"]
    one, all_of_them = (
        (path / "predictions.jsonl").read_text() for path in (tmp_path / "one", run / "evaluations" / folder)
    )
    assert one == all_of_them
    assert ranks(lambda _: command(*words, f"output={tmp_path / 'one'}"), tmp_path, count=count) == [2] * count


@pytest.mark.slow
def test_a_sweep_over_dropped_layers_is_a_table_and_a_chart(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("eval", "-m", f"run={run}", "adapter.drop_layers=0,1,4", f"hydra.sweep.dir={tmp_path}") == 0
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["varied"] for row in rows] == [{"adapter.drop_layers": text} for text in ("0", "1", "4")]
    assert len({row["folder"] for row in rows}) == 3, "each job has a folder of its own"
    scores = [json.loads((Path(row["folder"]) / "metrics.json").read_text())["metrics"] for row in rows]
    assert scores[0] == json.loads((run / "metrics.json").read_text())["metrics"]
    assert scores[1] != scores[0]
    assert all(row["samples_per_s"] > 0 for row in rows)
    with (tmp_path / "sweep.csv").open() as file:
        plain = list(csv.DictReader(file))
    assert [row["adapter.drop_layers"] for row in plain] == ["0", "1", "4"]
    assert [float(row["score"]) for row in plain] == [row["score"] for row in rows]
    out = capsys.readouterr().out
    assert "█" in out
    assert "sweep.csv" in out

    outcomes = sorted((tmp_path / "jobs").glob("*.json"))
    assert len(outcomes) == 3
    outcomes[1].unlink()  # as if it had been killed in its second job
    (Path(rows[1]["folder"]) / "metrics.json").unlink()
    words = ("eval", "-m", f"run={run}", "adapter.drop_layers=0,1,4")
    assert command(*words, "resume=auto", f"hydra.sweep.dir={tmp_path}") == 0
    assert capsys.readouterr().out.count("as before") == 2
    again = json.loads((tmp_path / "sweep.json").read_text())
    assert [(row["score"], row["folder"]) for row in again] == [(row["score"], row["folder"]) for row in rows]
    assert command(*words[:-1], "adapter.drop_layers=0,4", f"hydra.sweep.dir={tmp_path / 'other'}") == 0, (
        "not in each other's way"
    )


@pytest.mark.slow
def test_all_layers_dropped_is_the_frozen_model(run: Path, tmp_path: Path) -> None:
    assert command("eval", f"run={run}", "adapter.drop_layers=4", f"output={tmp_path / 'dropped'}") == 0
    frozen = tiny_run(tmp_path / "frozen", "retrieval", "model=tiny_clip", "adapter=none")
    one, two = (json.loads((f / "metrics.json").read_text())["metrics"] for f in (tmp_path / "dropped", frozen))
    assert one == two


def test_more_layers_than_there_are_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("eval", f"run={run}", "adapter.drop_layers=9") == 2
    assert "adapter.drop_layers=9: no tower with adapters has more than" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_takes_it_too(run: Path, tmp_path: Path) -> None:
    make_samples()[0].image.load().save(tmp_path / "image.png")
    asked = [f"run={run}", f"image={tmp_path / 'image.png'}", "texts=[red,blue]"]
    found = {}
    for count in (0, 4):
        output = tmp_path / f"{count}.jsonl"
        assert command("predict", *asked, f"adapter.drop_layers={count}", f"output={output}") == 0
        found[count] = json.loads(output.read_text())["hits"]
    assert found[0] != found[4]


@pytest.mark.slow
def test_a_run_without_its_baselines_is_compared_with_the_data_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path / "run", "vqa", "trainer.eval_loss=false")
    known = json.loads((run / "metrics.json").read_text())["baselines"]["most_frequent_answer"]
    assert known["source"] == "the training data"
    (run / "baselines.json").unlink()
    assert command("eval", f"run={run}", f"output={tmp_path / 'out'}") == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["baselines"]["most_frequent_answer"]
    assert found["source"].startswith("the evaluated data itself")
    assert found["metrics"]["accuracy"] >= known["metrics"]["accuracy"]
    assert "baseline" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_what_is_stopped_goes_on_after_the_last_batch(
    verb: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten samples in batches of two, of which the third is never done; the results are those of an evaluation in one go."""
    for number, sample in enumerate(load(DataConfig(eval_size=10), TaskConfig("retrieval"), ["eval"])["eval"]):
        sample.image.load().save(tmp_path / f"{number}.png")
    words = {
        "eval": ["eval", f"run={run}", "trainer.eval_batch_size=2"],
        "predict": ["predict", f"run={run}", f"image={tmp_path}", "texts=[red,blue]", "trainer.eval_batch_size=2"],
    }[verb]
    outputs = [tmp_path / name for name in ("whole", "stopped")]
    results = [path / "predictions.jsonl" if verb == "eval" else path for path in outputs]
    assert command(*words, f"output={outputs[0]}") == 0
    original, done = Dual.image_features, 0

    def features(*args: Any) -> Any:
        nonlocal done
        if done == 2:
            raise Stopped(signal.SIGTERM)
        done += 1
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Dual, "image_features", features)
        assert command(*words, f"output={outputs[1]}") == 143
    err = " ".join(capsys.readouterr().err.split())
    assert "To continue: the same command" in err
    assert not results[1].exists()
    done = -1
    monkeypatch.setattr(Dual, "image_features", features)
    assert command(*words, f"output={outputs[1]}") == 0
    assert done == 2, "three batches were left"
    assert results[1].read_text() == results[0].read_text()
    assert not [*tmp_path.rglob("*.part")]
