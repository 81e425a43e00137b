"""The check of a GPU box: its stages, each a test where there is a GPU, its rehearsal on the CPU, and how it starts them."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from scripts import gpu_check

SCRIPT = Path(gpu_check.__file__)
TOY = """
import json, os, sys, time
import carried  # from a wheel

stage, device, file, *more = sys.argv[1:]
figures = {"carried": carried.FILE, "tiny": more == ["--tiny"], "seen": os.environ.get("CUDA_VISIBLE_DEVICES")}
found = {"problems": [], "figures": figures}
if stage == "skips":
    found |= {"status": "skipped", "told": "nothing here to try it on"}
if stage == "wrong":
    found |= {"status": "failed", "problems": ["one of two"]}
if stage == "passes":
    found |= {"status": "passed", "told": "well"}
open(file, "w").write(json.dumps(found))
if stage == "hangs":
    time.sleep(60)
if stage == "dies":
    print("the last words")
    os.abort()
"""


@pytest.mark.gpu
@pytest.mark.parametrize("stage", gpu_check.STAGES)
def test_stage(stage: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    status = gpu_check.main(["--stages", stage, "--out", str(tmp_path)])
    found = json.loads((tmp_path / f"{stage}.json").read_text())
    assert status == 0, found["problems"]
    if found["status"] == "skipped":
        pytest.skip(found["told"])


@pytest.mark.slow
def test_the_rehearsal(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for stage in gpu_check.STAGES:
        found = json.loads((tmp_path / f"{stage}.json").read_text())
        assert found["status"] in ("passed", "skipped"), stage
        assert bool(found["figures"]) == (found["status"] == "passed")
        assert found["machine"]["torch"] == torch.__version__
    assert f"{len(gpu_check.STAGES)} stages, 0 failed" in done.stdout


def make_wheel(folder: Path) -> Path:
    """A package that reads a file of its own, as a wheel."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "carried/__init__.py", "from pathlib import Path\nFILE = Path(__path__[0], 'own.txt').read_text()\n"
        )
        wheel.writestr("carried/own.txt", "its own")
    return folder


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stages that need no backbone, and a folder with the wheel that they import."""
    (tmp_path / "toys.py").write_text(TOY)
    names = ("passes", "skips", "wrong", "dies", "hangs")
    monkeypatch.setattr(gpu_check, "STAGES", {name: gpu_check.Stage(str(tmp_path / "toys.py"), name) for name in names})
    return make_wheel(tmp_path / "wheels")


def test_stages_run_one_after_the_other_each_with_its_file(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setattr(gpu_check, "LONGEST", 1)
    assert gpu_check.main(["--device", "cpu", "--tiny", "--wheels", str(toys), "--out", str(tmp_path / "out")]) == 1
    found = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").iterdir()}
    assert {name: one["status"] for name, one in found.items()} == {
        "passes": "passed", "skips": "skipped", "wrong": "failed", "dies": "failed", "hangs": "failed",
    }  # fmt: skip
    assert found["passes"]["figures"] == {"carried": "its own", "tiny": True, "seen": ""}
    assert found["dies"]["problems"] == ["it ended with status -6"]
    assert found["dies"]["output"].startswith("the last words")
    assert found["hangs"]["problems"] == ["it took more than 1 s"]
    assert found["hangs"]["seconds"] < 10
    printed = capsys.readouterr().out
    assert "5 stages, 3 failed" in printed
    assert printed.count("one of two") == 2  # when it is known, and in the table


def test_only_those_that_are_named(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--wheels", str(toys), "--out", str(tmp_path / "out")]
    assert gpu_check.main([*words, "--stages", "skips, passes"]) == 0
    assert [file.stem for file in sorted((tmp_path / "out").iterdir())] == ["passes", "skips"]
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--stages", "pases"])
    assert "there is no stage pases; there are passes, skips" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"wheels: no such folder; `make gpu-wheels`"):
        gpu_check.main(["--wheels", str(tmp_path / "wheels"), "--out", str(tmp_path)])


def test_unpacked_wheels_are_taken_as_they_are(tmp_path: Path) -> None:
    with zipfile.ZipFile(next(make_wheel(tmp_path / "wheels").iterdir())) as wheel:
        for where in ("together", "apart/carried-1.0"):
            wheel.extractall(tmp_path / where)
    for name, entry in (("together", "together"), ("apart", "apart/carried-1.0")):
        paths = gpu_check.unpack(tmp_path / name, tmp_path / "site")
        assert tmp_path / entry in paths
        assert any((path / "carried").is_dir() for path in paths)


def test_nothing_that_a_box_may_lack_is_imported_before_the_wheels_are_there() -> None:
    code = f"import sys, runpy; runpy.run_path({str(SCRIPT)!r}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"vlatrain", "torch", "hydra", "yaml"} & set(loaded)


def test_every_stage_is_a_function_of_its_script() -> None:
    for name, stage in gpu_check.STAGES.items():
        script = SCRIPT.with_name(stage.script)
        command = [sys.executable, str(script), "--help"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert name in done.stdout
