"""What is read back from a run folder is written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disk import killed_while_writing, room
from vlatrain.config import TrainConfig, UserError
from vlatrain.config.files import has_manifest, replace_file, replace_folder, write_file, write_lines, write_manifest
from vlatrain.reporting.history import JsonLines
from vlatrain.runs import save_config

WRITERS: dict[str, Callable[[Path, int], object]] = {
    "config.yaml": lambda folder, number: save_config(TrainConfig(seed=number), folder),
    "predictions.jsonl": lambda folder, number: write_lines(folder / "predictions.jsonl", [{"id": str(number)}] * 99),
    "metrics.jsonl": lambda folder, number: JsonLines(folder / "metrics.jsonl").begin(number),
    "folder": lambda folder, number: replace_folder(
        folder / "folder", lambda where: (where / "content").write_text(f"{number}")
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_leaves_what_was_there_before(name: str, tmp_path: Path) -> None:
    def content() -> bytes:
        return next(path for path in (tmp_path / name / "content", tmp_path / name) if path.is_file()).read_bytes()

    lines = "".join(json.dumps({"step": step}) + "\n" for step in range(5))
    (tmp_path / "metrics.jsonl").write_text(lines)
    WRITERS[name](tmp_path, 3)
    before = content()
    killed_while_writing(lambda: WRITERS[name](tmp_path, 1))
    assert content() == before
    WRITERS[name](tmp_path, 1)
    assert content() != before
    assert not list(tmp_path.glob("*.tmp")), "what the kill left has gone"


def test_a_full_disk_leaves_what_was_there_before_and_is_told(tmp_path: Path) -> None:
    file = tmp_path / "made" / "file"
    replace_file(file, "before")
    with room(1000):
        with pytest.raises(OSError, match="File too large"):
            replace_file(file, bytes(5000))
        with pytest.raises(UserError, match=r"file could not be written .*make room"):
            write_file(file, "x" * 5000)
    assert file.read_text() == "before"
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_a_manifest_of_another_kind_is_none(tmp_path: Path) -> None:
    assert not has_manifest(tmp_path)
    for text in ("{", "[]", '{"name": "an app"}', '{"files": ["a"]}', '{"files": {"a": {"url": ""}}}'):
        (tmp_path / "manifest.json").write_text(text)
        assert not has_manifest(tmp_path), text
    write_manifest(tmp_path)
    assert has_manifest(tmp_path)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    replace_folder(folder, lambda where: (where / "a").write_text("1"))
    replace_folder(folder, lambda where: (where / "b").write_text("2"))
    assert [path.name for path in folder.iterdir()] == ["b"]
    with room(1000), pytest.raises(UserError, match="adapter could not be written"):
        replace_folder(folder, lambda where: (where / "c").write_bytes(bytes(5000)))
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
