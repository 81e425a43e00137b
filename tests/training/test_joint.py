"""A joint run from the command line: trained, scored, asked, and continued with the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.commands import asked, command, tiny_run

BY_TASK = ("adapter.by_task=true", "adapter.share.what=down", "adapter.share.over=[task]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint") / "run"
    other = (
        "+task@task.subtasks.easy=vqa",
        "data.subtasks.easy.seed=5",
        "data.subtasks.easy.train_size=7",
        "task.sampling=balanced",
        "adapter.points=[decoder]",
        "trainer.cache=memory",
    )
    return tiny_run(folder, "joint", *other, *BY_TASK)


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_every_subtask_is_scored(run: Path) -> None:
    metrics = read(run / "metrics.json")
    scores = metrics["metrics"]
    headlines = ["vqa/accuracy", "captioning/cider_d", "easy/accuracy"]
    assert metrics["metric"] == "mean"
    assert metrics["settings"]["mean_of"] == headlines
    assert scores["mean"] == pytest.approx(sum(scores[name] for name in headlines) / 3)
    assert "72 train samples, 30 eval samples" in (run / "run.log").read_text()  # 24 of each subtask
    records = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [record["subtask"] for record in records] == ["vqa"] * 10 + ["captioning"] * 10 + ["easy"] * 10
    assert len({record["id"] for record in records}) == 30
    assert "for_task" in (run / "adapter" / "README.md").read_text()


@pytest.mark.slow
def test_eval_scores_them_again(run: Path, tmp_path: Path) -> None:
    assert command("eval", f"run={run}", f"output={tmp_path}") == 0
    assert read(tmp_path / "metrics.json")["metrics"] == pytest.approx(read(run / "metrics.json")["metrics"])


def test_a_subtask_is_asked_where_towers_are_kept(run: Path, tmp_path: Path) -> None:
    assert "Cache: vision.0-3, fusion.0-2 of" in (run / "run.log").read_text()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (answer,) = asked(
        tmp_path / "out.jsonl", f"run={run}", f"image={tmp_path / 'red.png'}", "subtask=easy", "question=what is it?"
    )
    assert answer["question"] == "what is it?"


@pytest.mark.slow
def test_predict_asks_a_subtask(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(image)

    def answers(*words: str) -> list[dict]:
        return asked(tmp_path / "out.jsonl", f"run={run}", f"image={image}", *words)

    (caption,) = answers()  # without a question only the captioning subtask can be meant
    assert caption == answers("subtask=captioning")[0]
    (answer,) = answers("subtask=easy", "question=what is it?", "top_k=2")
    assert len(answer["hits"]) == 1
    more = "task.subtasks.easy.decode.num_beams=2"
    assert f"{more} searches for more" in " ".join(capsys.readouterr().out.split())
    (answer,) = answers("subtask=easy", "question=what is it?", "top_k=2", more)
    assert len(answer["hits"]) == 2
    assert command("predict", f"run={run}", f"image={image}", "question=what is it?") == 2
    assert "say which one is asked with subtask=" in capsys.readouterr().err


@pytest.mark.slow
def test_a_continued_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = (
        "task.sampling=temperature", "data.subtasks.vqa.train_size=5", "adapter.dropout=0.2", "adapter.by_task=true",
        "trainer.max_steps=6", "trainer.save_every=2", "trainer.keep=9", "trainer.eval_every=9",
    )  # fmt: skip
    whole = tiny_run(tmp_path / "whole", "joint", *settings)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    for folder in ("adapter", "checkpoints/step_4", "checkpoints/step_6"):
        shutil.rmtree(broken / folder)
    (broken / "metrics.json").unlink()
    tiny_run(broken, "joint", *settings, "resume=auto")
    assert read(broken / "metrics.json")["training"]["resumed_from"] == 2
    one, two = (folder / "adapter" / "adapter_model.safetensors" for folder in (whole, broken))
    assert one.read_bytes() == two.read_bytes()
