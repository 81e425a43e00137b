"""ViLT through the command line: it answers from a list that its run keeps, and finds by matching."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import ViltForQuestionAnswering

from tests.commands import command, small_model, tiny_run
from vlatrain.data.shapes import build


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, ...]:
    return small_model(tmp_path / "conf", "vilt")


def asked(folder: Path, task: str) -> Path:
    picture = folder / "asked.png"
    build(task, "test", 1, 0)[0].image.load().save(picture)
    return picture


@pytest.mark.slow
def test_answers_come_from_a_list_that_the_run_keeps(
    tmp_path: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("inspect", "task=vqa", *small) == 0
    assert "0-2" in capsys.readouterr().out
    run = tiny_run(tmp_path / "run", "vqa", *small)
    answers = yaml.safe_load((run / "config.yaml").read_text())["task"]["answer_list"]
    assert set(answers) == {a for sample in build("vqa", "train", 24, 0) for a in sample.answers}
    assert command("eval", f"run={run}") == 0
    metrics, again = (json.loads((run / name / "metrics.json").read_text()) for name in (".", "evaluations" / "eval"))
    assert again["metrics"] == metrics["metrics"]
    found = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert {record["prediction"] for record in found} <= set(answers)
    output = tmp_path / "answers.jsonl"
    picture = asked(tmp_path, "vqa")
    assert command("predict", f"run={run}", f"image={picture}", "question='what is it?'", f"output={output}") == 0
    (record,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(record["hits"]) == min(5, len(answers))
    assert all(0 <= hit["score"] <= 1 for hit in record["hits"])


@pytest.mark.slow
def test_a_run_goes_on_and_goes_into_a_checkpoint(tmp_path: Path, small: tuple[str, ...]) -> None:
    run = tiny_run(tmp_path / "run", "vqa", *small, "adapter=lora", "trainer.save_every=1", "trainer.cache=off")
    metrics = json.loads((run / "metrics.json").read_text())
    tiny_run(
        tmp_path / "run", "vqa", *small, "adapter=lora", "trainer.save_every=1", "trainer.cache=off", "resume=auto"
    )
    assert json.loads((run / "metrics.json").read_text())["metrics"] == metrics["metrics"]
    assert command("export", f"run={run}", "form=merged", f"to={tmp_path / 'whole'}") == 0
    model = ViltForQuestionAnswering.from_pretrained(tmp_path / "whole")
    answers = yaml.safe_load((run / "config.yaml").read_text())["task"]["answer_list"]
    assert [model.config.id2label[place] for place in range(len(answers))] == answers
    assert command(
        "task=vqa", "model=vilt", f"model.checkpoint={tmp_path / 'whole'}", "adapter=none", f"run.dir={tmp_path / 'none'}",
        "data.train_size=24", "data.eval_size=10",
    ) == 0  # fmt: skip
    frozen = json.loads((tmp_path / "none" / "metrics.json").read_text())
    assert frozen["metrics"] == metrics["metrics"]  # its answers are the checkpoint's own


@pytest.mark.slow
def test_images_and_texts_are_found_by_matching(
    tmp_path: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path / "run", "retrieval", *small, "adapter=cross_modal")
    assert "10 images x 20 texts are 200 pairs" in (run / "run.log").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["settings"]["scored"] == "pairs"
    picture, output = asked(tmp_path, "retrieval"), tmp_path / "found.jsonl"
    assert (
        command("predict", f"run={run}", f"image={picture}", "texts=[a ring,a house,a star]", f"output={output}") == 0
    )
    (record,) = [json.loads(line) for line in output.read_text().splitlines()]
    scores = [hit["score"] for hit in record["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    assert command("predict", f"run={run}", f"image={tmp_path}", "text=a ring", f"output={output}") == 0
    (found,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert found["hits"][0]["text"] == str(picture)


@pytest.mark.parametrize("task", ["captioning", "classification", "instruct"])
def test_what_it_cannot_do_is_said(task: str, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"task={task}", *small) == 2
    assert f"task={task}: model=small_vilt cannot do it; it can do vqa, retrieval" in capsys.readouterr().err
