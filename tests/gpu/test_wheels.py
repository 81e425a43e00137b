"""What is gathered for a GPU box goes with what it has."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from scripts import gpu_wheels

BOX = {"torch": "2.11.0", "huggingface-hub": "1.33.0", "rich": ""}


def make_wheel(folder: Path, name: str, version: str, *needs: str) -> Path:
    file = folder / f"{name}-{version}-py3-none-any.whl"
    lines = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\nVersion: {version}\n{lines}\n")
        wheel.writestr("bundled/_vendor/other-1.dist-info/METADATA", "Name: other\n")
    return file


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Packages by name, with versions, newest first, and what each needs: instead of what pip reaches."""
    shelves: dict[str, list[tuple[str, tuple[str, ...]]]] = {}

    def download(requirement: str, scratch: Path) -> Path:
        wanted = Requirement(requirement)
        for version, needs in shelves[wanted.name]:
            if version in wanted.specifier:
                return make_wheel(scratch, wanted.name.replace("-", "_"), version, *needs)
        raise SystemExit(f"{requirement} cannot be had")

    monkeypatch.setattr(gpu_wheels, "_download", download)
    return shelves


def test_the_box_has_what_vlatrain_runs_with() -> None:
    box = gpu_wheels.read_box(gpu_wheels.BOX)
    assert not gpu_wheels.incompatibilities(gpu_wheels.wanted(), box)
    assert {need.name for need in gpu_wheels.wanted() if need.name not in box} == {
        "datasets",
        "hydra-core",
        "omegaconf",
    }
    assert gpu_wheels.incompatibilities([Requirement("torch>=2.12"), Requirement("rich>99")], box) == [
        "torch>=2.12 (there: 2.11.0)"
    ]


def test_only_what_is_missing_and_what_that_needs(registry: dict, tmp_path: Path) -> None:
    registry |= {
        "hydra-core": [("1.3.8", ("omegaconf<2.4", "torch>=2", "importlib-resources; python_version<'3.9'"))],
        "omegaconf": [("3.0", ()), ("2.3.1", ("rich",))],
    }
    files = gpu_wheels.gather([Requirement("torch"), Requirement("hydra-core")], BOX, tmp_path / "wheels")
    assert sorted(file.name.rsplit("-py3")[0] for file in files) == ["hydra_core-1.3.8", "omegaconf-2.3.1"]
    assert sorted((tmp_path / "wheels").iterdir()) == sorted(files)


def test_a_version_that_does_not_go_with_the_box_is_passed_over(registry: dict, tmp_path: Path) -> None:
    registry["datasets"] = [
        ("6.1", ("huggingface_hub>=2",)),
        ("6.0", ("huggingface_hub>=2",)),
        ("5.2", ("huggingface_hub<2",)),
    ]
    (file,) = gpu_wheels.gather([Requirement("datasets>=4")], BOX, tmp_path)
    assert file.name.startswith("datasets-5.2-")


def test_two_that_want_the_same_agree(registry: dict, tmp_path: Path) -> None:
    registry |= {
        "datasets": [("5.2", ("dill<0.4.2", "multiprocess"))],
        "multiprocess": [("0.70", ("dill<0.4",))],
        "dill": [("0.5", ()), ("0.4.1", ()), ("0.3.9", ())],
    }
    files = gpu_wheels.gather([Requirement("datasets")], BOX, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.name for file in files)
    assert (tmp_path / "dill-0.3.9-py3-none-any.whl") in files


def test_where_nothing_goes_with_the_box_it_says_why(
    registry: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry["datasets"] = [(f"6.{minor}", ("huggingface_hub>=2",)) for minor in (2, 1, 0)]
    monkeypatch.setattr(gpu_wheels, "TRIES", 2)
    with pytest.raises(SystemExit, match=r"datasets 6\.2 wants huggingface_hub>=2 \(there: 1\.33\.0\)"):
        gpu_wheels.fetch("datasets", SpecifierSet(), BOX, tmp_path)


def test_more_than_can_be_carried_is_refused_and_extras_are_left_out(
    registry: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry |= {"hydra-core": [("1.3.8", ())], "omegaconf": [("2.3.1", ())], "datasets": [("5.2", ())]}
    registry["bitsandbytes"] = [("0.50", ())]
    into = tmp_path / "into"
    monkeypatch.setattr("sys.argv", ["gpu_wheels.py", "--into", str(into)])
    gpu_wheels.main()
    assert len(list(into.glob("*.whl"))) == 4
    size = gpu_wheels.megabytes([*into.glob("*.whl")])
    monkeypatch.setattr(gpu_wheels, "MOST_MB", 0.99 * size)
    gpu_wheels.main()
    assert len(list(into.glob("*.whl"))) == 3
    assert "left out: bitsandbytes-0.50-py3-none-any.whl" in capsys.readouterr().out
    monkeypatch.setattr(gpu_wheels, "MOST_MB", 0.5 * size)
    with pytest.raises(SystemExit, match="MB are needed, at most"):
        gpu_wheels.main()
