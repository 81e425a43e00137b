"""The tables of results on real data: what their files are made of, and that every command line is one."""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import pytest
import yaml

import vlatrain
from tests.real.conftest import SCRIPTS

SETS = yaml.safe_load((SCRIPTS / "real_results.yaml").read_text(encoding="utf-8"))
LINES = [(name, title, row) for name, one in SETS.items() for title, row in one["rows"].items()]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "title", "row"), LINES, ids=[f"{name}: {title}" for name, title, _ in LINES])
def test_every_line_is_a_training(
    name: str, title: str, row: dict[str, str], results: ModuleType, towers: Path, tmp_path: Path
) -> None:
    known = results.Row(**row)
    places = {"data": tmp_path / "data", "made": tmp_path / "made", "towers": towers}
    for words in known.tries or [""]:
        typed = shlex.split(f"{SETS[name]['words']} {known.words} {words}".format(**places))
        for path in (Path(word.partition("=")[2]) for word in typed if str(tmp_path) in word):
            file = path if path.suffix else path / "shirt/0.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        assert vlatrain.compose(*typed).data.train.startswith(str(tmp_path))


def test_the_best_try_on_validation_is_taken(results: ModuleType, tmp_path: Path) -> None:
    runs = results.Runs(tmp_path, "task=classification", {})
    for number, score in enumerate((71.5, 80.25, 12.0)):
        (tmp_path / f"row/try-{number}").mkdir(parents=True)
        found = {"metric": "accuracy", "metrics": {"accuracy": score}}
        (tmp_path / f"row/try-{number}/metrics.json").write_text(json.dumps(found))
    assert runs.chosen("row", results.Row("adapter=full", 90, ["a", "b", "c"])) == "b"
    assert runs.chosen("row", results.Row("adapter=knn")) == ""


def test_rows_run_at_a_time_on_their_share_of_the_cores(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both, seen = threading.Barrier(2, timeout=20), []

    def run(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(next(word for word in command if word.startswith("run.dir=")).partition("=")[2])
        both.wait()  # neither ends before the other has begun
        seen.append(env["OMP_NUM_THREADS"])
        folder.mkdir(parents=True)
        score = {"linear-probe-1": 20.0, "linear-probe-4": 40.0}[folder.parent.name] + int(folder.name[-1])
        found = {"metric": "accuracy", "metrics": {"accuracy": score}, "parameters": {"percent": 0.5, "trainable": 9}}
        found |= {"speed": {"wall_s": 3}, "memory": {"peak_mb": 7}}
        (folder / "metrics.json").write_text(json.dumps(found))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(results.subprocess, "run", run)
    monkeypatch.setattr(results.os, "cpu_count", lambda: 6)
    (tmp_path / "clothing/train").mkdir(parents=True)
    asked = [str(tmp_path), "shots", "--rows", "linear probe, 1", "linear probe, 4", "--seeds", "0", "1", "--jobs", "2"]
    monkeypatch.setattr("sys.argv", ["real_results.py", *asked, "--runs", str(tmp_path / "runs")])
    assert results.main() == 0
    assert seen == ["3"] * 4
    told = capsys.readouterr().out
    assert told.index("| linear probe, 1 | 20.5 | ± 0.7 (2 seeds)") < told.index(
        "| linear probe, 4 | 40.5 | ± 0.7 (2 seeds)"
    )


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["shoes"], "no set shoes; there are clothing, shots, questions"),
        (["shots", "--rows", "kNN"], "no row kNN; there are: linear probe, 1; linear probe, 4"),
        (["--jobs", "0"], "--jobs 0: at least 1"),
    ],
)
def test_what_there_is_not_is_told(
    results: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: list[str],
    told: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["real_results.py", str(tmp_path), *asked, "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit, match="2"):
        results.main()
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_is_still_known_is_asked_of_the_first_run_once(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "| run | its adapter |\n|---|---|\n| a | on |\n| a | off |\n"
    asked = []

    def run(command: list[str], stdout: TextIO, **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[1:])
        stdout.write(told)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(results.subprocess, "run", run)
    for name, trainable in (("probe/seed-4", 7), ("kNN/seed-4", 0)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text(json.dumps({"parameters": {"trainable": trainable}}))
    runs = results.Runs(tmp_path, "", {}, others=tmp_path / "kNN")
    for _ in range(2):
        assert runs.row("probe", results.Row(""), [4]).retained == ["| a | on |", "| a | off |"]
    assert asked == [[str(SCRIPTS / "retention.py"), str(tmp_path / "kNN"), str(tmp_path / "probe/seed-4")]]
    assert runs.row("kNN", results.Row(""), [4]).retained == []
    nowhere = results.Runs(tmp_path, "", {}, others=tmp_path / "nowhere")
    assert nowhere.row("probe", results.Row(""), [4]).retained == []


def test_cells_are_counted_by_photograph(results: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "boxes.csv"
    boxes = [("x1.jpg", "RBC"), ("x1.jpg", "WBC"), ("x1.jpg", "RBC"), *((f"y{n}.jpg", "Platelets") for n in range(110))]
    file.write_text("filename,cell_type,xmin\n" + "".join(f"{image},{kind},3\n" for image, kind in boxes))
    splits = results.cell_counts(file)
    assert {split: len(rows) for split, rows in splits.items()} == {"test": 150, "validation": 150, "train": 33}
    of_one = {row["question"]: row["answer"] for rows in splits.values() for row in rows if row["image"] == "x1.jpg"}
    assert of_one == {
        "how many red blood cells are there?": "2",
        "how many white blood cells are there?": "1",
        "how many platelets are there?": "0",
    }


def test_looks_captions_and_chats_are_what_questions_say(results: ModuleType, tmp_path: Path) -> None:
    rows = [
        ("0.png", "what is the blue shape?", "rectangle"),
        ("0.png", "what color is the shape?", "blue"),
        ("1.png", "is there a circle?", "no"),
    ]
    file = tmp_path / "train.jsonl"
    file.write_text(
        "".join(json.dumps(dict(zip(("image", "question", "answer"), row, strict=True))) + "\n" for row in rows)
    )
    assert results.looks_of(file) == {"0.png": ("blue", "rectangle")}
    captions, chats = results.captions_and_chats(file, 2)
    assert captions == [{"image": "0.png", "caption": "a blue rectangle"}]
    assert [len(chat["messages"]) for chat in chats] == [4, 2]
    assert chats[1]["messages"][1] == {"role": "assistant", "content": "no"}
