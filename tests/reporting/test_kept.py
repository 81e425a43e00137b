"""`vlatrain cache` lists what is kept and removes what it is told to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from vlatrain.cli import main
from vlatrain.training.store import NOTE, Disk


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "150")
    for number, name in enumerate(("aa11", "bb22")):
        store = Disk(
            tmp_path / name,
            name,
            {"model": f"model{number}", "task": "vqa", "prefix": "vision.0-7", "precision": "fp32"},
        )
        store.add({"sample": torch.zeros(1, 10, 10)})
        store.flush()
    long_ago = time.time() - 40 * 86_400
    os.utime(tmp_path / "aa11" / NOTE, (long_ago, long_ago))
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
        (["prune=bb"], ["aa11"]),
        (["older_than=30"], ["bb22"]),
        (["prune=bb22", "older_than=0"], ["aa11"]),
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
