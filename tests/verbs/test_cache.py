"""`vlatrain cache` lists what is kept and removes what it is told to."""

from __future__ import annotations

import io
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.disk import killed_while_writing
from vlatrain.cli.main import main
from vlatrain.config import disk_cache, memo
from vlatrain.data import stored
from vlatrain.data.images import FilePicture
from vlatrain.data.mapped import write
from vlatrain.data.sample import Sample
from vlatrain.tasks.looks import KEPT
from vlatrain.training.prefix_cache.store import Disk
from vlatrain.verbs.cache import show

A, B, KILLED, EARLIER, OTHER = "aa11" * 8, "bb22" * 8, "cc33" * 8, "dd44" * 8, "weights of mine"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "150")
    for number, name in enumerate((A, B)):
        about = {"model": f"model{number}", "task": "vqa", "prefix": "vision.0-7", "precision": "fp32"}
        store = Disk(tmp_path / name, name, about)
        store.add({"sample": torch.zeros(1, 10, 10)}, False)
        store.flush()
    long_ago = time.time() - 40 * 86_400
    os.utime(tmp_path / A, (long_ago, long_ago))
    return tmp_path


def test_lists(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    out = capsys.readouterr().out
    for part in ("aa11", "bb22", "model0", "vision.0-7", "40 days ago", "0 days ago"):
        assert part in out


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["prune=all"], []),
        (["prune=bb"], [A]),
        (["older_than=30"], [B]),
        (["prune=bb22", "older_than=0"], [A]),
    ],
)
def test_prunes(words: list[str], left: list[str], kept: Path) -> None:
    assert main(["cache", *words]) == 0
    assert sorted(path.name for path in kept.iterdir()) == left


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("prun=all", "did you mean prune"),
        ("older_than=long", "a number of days"),
        ("prune=cc", "nothing is kept"),
        ("prune=", "prune=NAME"),
    ],
)
def test_refuses(word: str, told: str, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", word]) == 2
    assert told in capsys.readouterr().err
    assert len(list(kept.iterdir())) == 2


def test_nothing_kept_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "none"))
    assert main(["cache"]) == 0
    assert "0.00 GB in all" in capsys.readouterr().out


def test_what_killed_runs_and_earlier_versions_left_is_listed_and_removed_and_nothing_else(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = Disk(kept / KILLED, KILLED, {})
    unfinished.add({"sample": torch.zeros(1, 10, 10)}, False)
    killed_while_writing(unfinished.flush)
    for name in (EARLIER, OTHER):
        shutil.copytree(kept / B, kept / name)
    (kept / EARLIER / "prefix.json").write_text("{")
    (kept / EARLIER / ".tmpX1y2z3").touch()
    assert main(["cache"]) == 0
    out = capsys.readouterr().out
    assert all(name[:12] in out for name in (A, B, KILLED, EARLIER))
    assert main(["cache", "prune=all"]) == 0
    assert "Removed 4 of 4" in capsys.readouterr().out
    assert [path.name for path in kept.iterdir()] == [OTHER]


def test_a_file_is_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    assert main(["cache"]) == 2
    assert "is a file; set it to a folder" in capsys.readouterr().err


def test_data_reports_and_counts_go_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path))
    memo.keep_result("a", 1)
    counts = tmp_path / KEPT.format("b" * 32)
    counts.touch()
    show(["older_than=1"], Console(file=io.StringIO()))
    assert memo.load_result("a") == 1
    assert counts.exists()
    show(["prune=all"], Console(file=io.StringIO()))
    assert memo.load_result("a") is None
    assert not counts.exists()


@pytest.mark.parametrize(
    ("words", "left"),
    [([], [A, B]), (["prune=all"], []), (["prune=bb"], [A]), (["older_than=30"], [B]), (["older_than=50"], [A, B])],
)
def test_tables_of_samples_are_listed_and_removed(
    words: list[str], left: list[str], kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = kept / stored.FOLDER
    for name in (A, B):
        (tables / name).mkdir(parents=True)
        sample = Sample("1", FilePicture("a.png"), "q")
        write(tables / name, {"train": [sample] * 1234, "eval": [sample]}, [], lambda path: None, [])
        (tables / name).with_suffix(disk_cache.LOCK).touch()
        shutil.rmtree(kept / name)
    long_ago = time.time() - 40 * 86_400
    os.utime(tables / A, (long_ago, long_ago))
    assert main(["cache", *words]) == 0
    out = capsys.readouterr().out
    if words:
        assert f"Removed {2 - len(left)} of 2 folders of samples" in out
    else:
        assert out.count("1,234 train, 1 eval") == 2
        assert "40 days ago" in out
    assert sorted(path.stem for path in tables.glob("*")) == sorted(2 * left)
    assert tables.exists() == bool(left)


def test_what_is_half_written_is_listed_and_pruned(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of prefixes, of tables of samples, and of reports."""
    (kept / A / "x.safetensors.tmp").write_bytes(b"x")
    (kept / stored.FOLDER / "abc-1.tmp").mkdir(parents=True)
    (kept / memo.FOLDER).mkdir()
    (kept / memo.FOLDER / "r.json.tmp").write_bytes(b"x")
    assert main(["cache"]) == 0
    assert "3 half written, by runs that were killed or are at it" in " ".join(capsys.readouterr().out.split())
    assert main(["cache", "prune=all"]) == 0
    assert not [*kept.rglob("*.tmp")]
