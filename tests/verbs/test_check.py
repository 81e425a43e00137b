"""`vlatrain check`: each fault of a set is printed once; strict, JSON, and what a second look costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import SMALL_BLIP, command, tiny_run
from tests.data.writing import write_records
from vlatrain.backbones.describe import ASSETS

COLOURS = [(40 * (i % 6), 60 * (i // 6), 90) for i in range(24)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def faulty(tmp_path: Path) -> list[str]:
    """A VQA set with one of each fault."""
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "3.png").read_bytes())
    Image.new("RGB", (8, 30)).save(tmp_path / "thin.png")
    rows = [{"image": f"{i}.png", "question": f"is it {i}?", "answer": "yes"} for i in range(16)]
    rows.append({"image": "5.png", "question": "is it 5?", "answer": "yes"})  # again
    rows.append({"image": "6.png", "question": "Is it  6?", "answer": "no"})
    rows.append({"image": "7.png", "question": "is it red, " * 30, "answer": "yes"})  # too long
    rows.append({"image": "thin.png", "question": "is it 猫?", "answer": "no"})
    evaluation = [{"image": f"{i}.png", "question": f"is it {i}?", "answer": "yes"} for i in range(16, 22)]
    evaluation.append({"image": "copy.png", "question": "what now?", "answer": "perhaps"})
    train = write_records(tmp_path / "train.jsonl", rows)
    return [
        "check", "data=files", f"data.train={train}", f"data.eval={write_records(tmp_path / 'eval.jsonl', evaluation)}",
        "task.max_length=20",
    ]  # fmt: skip


ONCE = (
    "data.eval: 1 of its 7 images are in data.train",
    "data.train: 1 of 20 samples (5 %) repeat others",
    "1 question about one image has different answers",
    "no answer of 1 of 7 samples",
    "1 of 24 images (4.17 %) have a side of less than 16 pixels",
    "questions of 1 of 20 samples are cut to 20 tokens",
    "questions of 1 of 20 samples have characters that the tokenizer does not know",
)


def test_each_fault_is_printed_once(faulty: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report.json"
    for _ in range(2):  # the second time it is kept
        assert command(*faulty, f"output={output}") == 0
        said = capsys.readouterr()
        assert [fault for fault in ONCE if said.out.count(fault) != 1 or fault in said.err] == []
        assert said.out.count("warning:") == len(ONCE)
        report = json.loads(output.read_text(encoding="utf-8"))
        assert len(report["warnings"]) == len(ONCE)
        train = report["subtasks"][""]["splits"]["train"]
        (questions,) = [row for row in train["texts"] if row["kind"] == "questions"]
        assert (questions["samples"], questions["limit"], questions["cut"]) == (20, 20, 5.0)
        assert questions["tokens"]["longest"] > 60
        assert "subtasks" not in said.out
    assert command(*faulty, "strict=true") == 2
    assert f"strict=true: {len(ONCE)} warnings" in capsys.readouterr().err


def test_what_a_training_would_refuse_is_refused_and_the_rest_is_shown(
    faulty: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*faulty, "task.decode.max_new_tokens=100000") == 2
    said = capsys.readouterr()
    assert "task.decode.max_new_tokens=100000" in said.err
    assert "Traceback" not in said.err
    assert ONCE[0] in said.out


def test_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{number}.png")
    labels = ["free"] * 16 + ["crack"] * 3 + ["Crack"] * 3 + ["break"] * 2
    rows = [{"image": f"{i}.png", "label": label} for i, label in enumerate(labels)]
    rows.append({"image": "0.png", "label": "break"})
    train = write_records(tmp_path / "t.csv", rows)
    words = [
        "check",
        "task=classification",
        "model=tiny_clip",
        "data=files",
        f"data.train={train}",
        f"data.eval={train}",
    ]
    assert command(*words) == 0
    said = " ".join(capsys.readouterr().out.split())
    for fault in (
        "classes 'crack' (6) and 'Crack' (6) differ by case",
        "1 image has several labels, by content (the first: 'free' in",
        "class 'free' has 16 of 25 samples (64.0 %)",
        "'Crack' and 'crack' are the same tokens",
        "25 of its",
    )[:4]:
        assert said.count(fault) == 1, fault


@pytest.mark.parametrize("task", ["vqa", "captioning", "retrieval", "classification", "joint"])
def test_built_in_data_has_no_faults(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("check", f"task={task}", "data.train_size=32", "data.eval_size=8", "strict=true") == 0
    out = capsys.readouterr().out
    assert "Nothing stands out." in out
    assert ("Data of subtask captioning" in out) == (task == "joint")


def test_random_weights_need_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=blip", "model.random_init=true", *SMALL_BLIP, "data.train_size=16", "data.eval_size=4"]
    assert command("check", "task=vqa", *words) == 0
    assert "questions" in capsys.readouterr().out


def test_photographs_before_a_tiny_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        Image.effect_noise((90, 80), 50 + number).convert("RGB").save(tmp_path / f"{number}.jpg")
    rows = [{"image": f"{i}.jpg", "question": "what?", "answer": "noise"} for i in range(4)]
    train = write_records(tmp_path / "t.jsonl", rows)
    words = ["check", "data=files", f"data.train={train}", "data.eval_fraction=0.25"]
    assert command(*words) == 0
    line = "look like photographs, and model=tiny_blip has seen nothing but generated scenes"
    assert capsys.readouterr().out.count(line) == 1
    assert command(*words, "model=blip", "model.random_init=true", *SMALL_BLIP) == 0
    assert line not in capsys.readouterr().out


@pytest.mark.slow
def test_a_second_look_needs_no_torch(faulty: list[str]) -> None:
    code = (
        "import sys; from vlatrain.cli.main import main\n"
        "status = main(sys.argv[1:]); print(status, 'torch' in sys.modules)"
    )
    said = [
        subprocess.run([sys.executable, "-c", code, *faulty], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert said[0].splitlines()[:-1] == said[1].splitlines()[:-1]
    assert [one.splitlines()[-1] for one in said] == ["0 True", "0 False"]


@pytest.mark.slow
def test_a_training_says_it_in_short(faulty: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *faulty[1:],
        "trainer.max_steps=1",
        "trainer.batch_size=2",
        "trainer.cache=off",
        f"run.dir={tmp_path / 'run'}",
    ]
    assert command(*words) == 0
    said = capsys.readouterr().err
    assert [fault for fault in ONCE if said.count(fault) != 1] == []
    assert "Training data: 17 images, 8 x 30 to 40 x 30 pixels" in said
    report = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    assert report["subtasks"][""]["splits"]["eval"]["samples"] == 7


@pytest.mark.slow
def test_a_joint_run_has_a_report_of_each_subtask(tmp_path: Path) -> None:
    folder = tiny_run(tmp_path / "run", "joint")
    report = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    assert set(report["subtasks"]) == {"vqa", "captioning"}
    assert report["subtasks"]["captioning"]["splits"]["train"]["captions"]["number"] > 0


def test_without_a_tokenizer_the_rest_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_bytes((ASSETS / "tiny_blip" / "config.json").read_bytes())
    words = ["check", f"model.checkpoint={tmp_path}", "data.train_size=8", "data.eval_size=4"]
    assert command(*words) == 2
    said = capsys.readouterr()
    assert "vocabulary" in said.err
    assert "samples" in said.out
