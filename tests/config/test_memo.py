"""Small results that are kept: found again by what they depend on, never in the way, bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlatrain.config import memo


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "cache"))


def test_a_result_is_found_again_by_what_it_depends_on() -> None:
    key = memo.key_of("a", {"b": [1, 2.5]})
    assert memo.load_result(key) is None
    memo.keep_result(key, {"né": [1, None]})
    assert memo.load_result(memo.key_of("a", {"b": [1, 2.5]})) == {"né": [1, None]}
    assert memo.load_result(memo.key_of("a", {"b": [1, 2.6]})) is None


def test_the_most_recent_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "MOST", 3)
    for number in range(5):
        memo.keep_result(f"k{number}", number)
    assert len(memo.results()) == 3
    assert memo.load_result("k4") == 4


@pytest.mark.parametrize("what", ["a file", "damaged"])
def test_a_folder_that_is_of_no_use_is_no_matter(what: str, tmp_path: Path) -> None:
    if what == "a file":
        (tmp_path / "cache").write_text("")
        memo.keep_result("k", 1)
    else:
        memo.keep_result("k", [1, 2, 3])
        (tmp_path / "cache" / memo.FOLDER / "k.json").write_text("[1, 2")
    assert memo.load_result("k") is None


def test_a_result_that_has_changed_is_not_believed() -> None:
    memo.keep_result("a", {"seconds": 10})
    (file,) = memo.results()
    file.write_text(file.read_text().replace("10", "90"))
    assert memo.load_result("a") is None
