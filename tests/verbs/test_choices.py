"""Multiple choice from the command line: trained by letter, scored again, asked with options; as a subtask, too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import vlatrain
from tests.commands import asked, command, tiny_run
from vlatrain.config import UserError

LETTERS = ("task.answers=letter", "task.prompt='{question} {options}'")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("choices") / "run", "vqa", *LETTERS)


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_it_is_scored_beside_chance_and_again_the_same(run: Path, tmp_path: Path) -> None:
    found = metrics(run)
    assert found["settings"]["accuracy"] == "multiple_choice"
    assert 25 <= found["baselines"]["chance"]["metrics"]["accuracy"] <= 50
    first = json.loads((run / "predictions.jsonl").open().readline())
    assert first["prediction"] in first["options"]
    assert command("eval", f"run={run}", f"output={tmp_path / 'again'}", "trainer.threads=1") == 0
    assert metrics(tmp_path / "again")["metrics"] == found["metrics"]


@pytest.mark.slow
def test_it_is_asked_with_options(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "is the red shape warm or cold?"
    rows = [
        {"image": "red.png", "question": question, "options": ["warm", "cold"]},
        {"image": "red.png", "question": question},
    ]
    (images / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (by_row,) = asked(tmp_path / "rows.jsonl", f"run={run}", f"input={images / 'rows.jsonl'}", "top_k=2")
    assert by_row["question"] == f"{question} A. warm B. cold"
    words = (f"run={run}", f"image={images / 'red.png'}", f"question={question}")
    (alone,) = asked(tmp_path / "one.jsonl", *words, "texts=[warm,cold]", "top_k=2")
    assert alone["hits"] == by_row["hits"]
    hits = vlatrain.load(run).predict(str(images / "red.png"), question=question, texts=["warm", "cold"])
    assert hits[0].text == by_row["prediction"]
    assert command("predict", *words) == 2
    assert "this run's questions have options: set texts=[...] to them" in capsys.readouterr().err
    with pytest.raises(UserError, match="set texts="):
        vlatrain.load(run).predict(str(images / "red.png"), question=question)


@pytest.mark.slow
def test_it_is_a_subtask_and_so_are_other_measures(tmp_path: Path) -> None:
    letters = (
        "+task@task.subtasks.pick=vqa",
        "task.subtasks.pick.answers=letter",
        "task.subtasks.pick.prompt='{question} {options}'",
    )
    read = ("+task@task.subtasks.read=vqa", "task.subtasks.read.metric=anls")
    found = metrics(tiny_run(tmp_path / "joint", "joint", *letters, *read))
    assert {"pick/accuracy", "read/anls", "vqa/accuracy"} <= {*found["metrics"]}
    assert "pick/chance" in found["baselines"]


def trained(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_continued_run_shows_the_same_orders(tmp_path: Path) -> None:
    settings = (*LETTERS, "trainer.max_steps=6", "trainer.save_every=2", "trainer.keep=9", "trainer.eval_every=9")
    whole = tiny_run(tmp_path / "whole", "vqa", *settings)
    broken = shutil.copytree(whole, tmp_path / "broken")
    for name in ("adapter", "checkpoints/step_4", "checkpoints/step_6"):
        shutil.rmtree(broken / name)
    (broken / "metrics.json").unlink()
    tiny_run(broken, "vqa", *settings, "resume=auto")
    assert metrics(broken)["training"]["resumed_from"] == 2
    assert trained(whole) == trained(broken)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_blip", "tiny_composite"])
def test_a_kept_prefix_changes_no_bit(model: str, tmp_path: Path) -> None:
    settings = (*LETTERS, f"model={model}", "adapter.points=[decoder]", "trainer.max_steps=4")
    computed = tiny_run(tmp_path / "computed", "vqa", *settings, "trainer.cache=off")
    kept = tiny_run(tmp_path / "kept", "vqa", *settings, "trainer.cache=memory")
    assert "Cache: vision.0-" in (kept / "run.log").read_text()
    assert trained(kept) == trained(computed)
    assert metrics(kept)["metrics"] == metrics(computed)["metrics"]
