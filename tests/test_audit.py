"""The published tables: every recipe is in the file, comes to what it says, and a row that does not is told."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from rich.console import Console

from vlatrain.config.folder import conf_dir

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "audit.py"
QUICK = ["vl_adapter/clip_bart/single_lora", "vl_adapter/clip_bart/multiple_lora", "published/cross_modal_adapter"]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def told(audit: ModuleType, *recipes: str) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=120)
    status = audit.main(list(recipes), console)
    return status, console.file.getvalue()  # type: ignore[attr-defined]


def tables() -> list[dict[str, Any]]:
    return yaml.safe_load(SCRIPT.with_suffix(".yaml").read_text())


@pytest.mark.slow
def test_some_rows_are_as_published(audit: ModuleType) -> None:
    status, text = told(audit, *QUICK)
    assert status == 0, text
    for shown in ("8,786,688", "5.928 %", "5.93 %", "6.302 %", "17.714 %", "17.72 %", "519,168"):
        assert shown in text
    assert "vl_adapter/clip_bart/multiple_lora: no count of parameters gives" in text, "the one that differs is named"


@pytest.mark.slow
def test_all_rows_are_as_published(audit: ModuleType) -> None:
    status, text = told(audit)
    assert status == 0, text
    assert "4.36 %" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"published": "5.94 %"}, "5.93 % counted, 5.94 % published"),
        ({"trainable": 1}, "trainable: 8,786,688 counted, 1 expected"),
        ({"total": 2}, "total: 148,234,752 counted, 2 expected"),
        ({"alone": "6.31 %"}, "6.30 % counted, 6.31 % published"),
        ({"differs": "as a joke"}, "excepted, and yet the same"),
    ],
)
def test_a_row_that_differs_is_told(audit: ModuleType, change: dict[str, Any], message: str) -> None:
    row = {"trainable": 8_786_688, "total": 148_234_752, "published": "5.93 %", **change}
    found = audit.Counted(8_786_688, 148_234_752, 139_420_416)
    assert list(audit.problems(row, found)) == [message]


def test_a_wrong_row_fails(audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"name": "wrong", "recipe": "cross_modal_adapter", "trainable": 519_168, "published": "519,169"}
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump([{"title": "Wrong", "folder": "published", "rows": [row]}]))
    monkeypatch.setattr(audit, "FILE", tmp_path / "audit.yaml")
    status, text = told(audit)
    assert status == 1
    assert "published/cross_modal_adapter: 519,168 counted, 519,169 published" in text


def test_every_recipe_has_a_row_and_one_row_differs() -> None:
    named = {f"{table['folder']}/{row['recipe']}" for table in tables() for row in table["rows"]}
    folder = conf_dir() / "experiment"
    found = {file.relative_to(folder).with_suffix("").as_posix() for file in folder.glob("*/**/*.yaml")}
    assert named == {name for name in found if not name.endswith("/backbone")}
    assert [row["recipe"] for table in tables() for row in table["rows"] if "differs" in row] == ["multiple_lora"]
