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
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vlatrain
from scripts import test_versions

ROOT = Path(__file__).resolve().parent.parent


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(file: str) -> dict[str, str]:
    """The versions in a file of constraints."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_every_dependency_is_pinned_within_its_range() -> None:
    pins = pinned("constraints.txt")
    for text in [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]:
        requirement = Requirement(text)
        if requirement.name == "vlatrain":
            continue
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_the_low_end_of_every_range_is_tested() -> None:
    pins = pinned("tests/versions/oldest.txt")
    for requirement in map(Requirement, PROJECT["dependencies"]):
        pin = pins[canonicalize_name(requirement.name)]
        if requirement.name == "torch":  # of that, only a newer one has a CPU build everywhere
            assert requirement.specifier.contains(pin)
            pin = test_versions.ENVIRONMENTS["torch-2.11"].instead["torch"]
        (low,) = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
        assert Version(pin) == low, requirement


def test_the_tests_of_versions_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    for environment in test_versions.ENVIRONMENTS.values():
        assert (ROOT / environment.constraints).is_file()
    for path in {*test_versions.CONTRACT, *test_versions.NUMERIC}:
        assert (ROOT / path).exists(), path
    assert test_versions.main(["newst"]) == 2
    assert "no part newst; there are oldest, newest" in capsys.readouterr().err


def test_the_change_log_knows_this_version() -> None:
    assert f"## {vlatrain.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_hooks_before_a_commit_have_the_pinned_versions() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pins = pinned("constraints.txt")
    needed = {name for hook in local["hooks"] for name in hook["additional_dependencies"]}
    assert needed == {f"{name}=={pins[name]}" for name in ("ruff", "mypy")}
    assert {"ruff", "mypy"} <= {Requirement(text).name for text in PROJECT["optional-dependencies"]["dev"]}


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
    for path in [
        *ROOT.glob("conf/**/*.yaml"),
        *ROOT.glob("vlatrain/assets/**/*"),
        *ROOT.glob("vlatrain/**/templates/*"),
    ]:
        if path.is_file():
            assert str(Path("vlatrain") / path.relative_to(ROOT)).replace("vlatrain/vlatrain", "vlatrain") in names
    ran = subprocess.run(
        [sys.executable, "-c", "from vlatrain.cli.main import entry; entry()", "--cfg", "job"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\nadapter:\n" in ran.stdout
