"""The wheel carries everything and works from any folder; and what the repository says of itself is consistent."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import vlatrain

ROOT = Path(__file__).resolve().parent.parent


def test_every_dependency_is_pinned_within_its_range() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pins = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    for text in [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]:
        requirement = Requirement(text)
        if requirement.name == "vlatrain":
            continue
        assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), text


def test_the_change_log_knows_this_version() -> None:
    assert f"## {vlatrain.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert targets is not None
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in targets[1].split():
        assert re.search(rf"make {target}\s+\S", told), target


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(unpacked)
    for path in [*ROOT.glob("conf/**/*.yaml"), *ROOT.glob("vlatrain/assets/**/*")]:
        if path.is_file():
            assert str(Path("vlatrain") / path.relative_to(ROOT)).replace("vlatrain/vlatrain", "vlatrain") in names
    ran = subprocess.run(
        [sys.executable, "-c", "from vlatrain.cli import entry; entry()", "--cfg", "job"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\nadapter:\n" in ran.stdout
