"""What is wrong with a data file is seen of its name and its first bytes, before anything slow is imported."""

from __future__ import annotations

import codecs
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import command
from vlatrain.config.checks.data_files import ENDINGS, fault, problems
from vlatrain.config.data import DataConfig
from vlatrain.data.files import READERS

FAULTS = {
    "a.jsonl": (b'[{"a": 1}]', "starts with '[': a JSON list; name the file .json"),
    "b.jsonl": (b"image,question", "not JSON: it begins with neither { nor ["),
    "c.json": (codecs.BOM_UTF8 + b" x", "not JSON: it begins with neither { nor ["),
    "d.parquet": (b"PK", "not Parquet, which begins with PAR1"),
    "e.arrow": (b"PAR1", "not Arrow, which begins with ARROW1 or is a stream"),
    "f.csv": (b"\x89PNG\0\0", "not a text: it has zero bytes; save it as UTF-8"),
    "g.json": (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer and not the data: run git lfs pull"),
    "h.json": (b"\n<!DOCTYPE html>", "a web page, not data: download it anew"),
    "i.xlsx": (b"PK", "xlsx is a spreadsheet; save it as CSV"),
    "j.jsonl.gz": (b"\x1f\x8b", "gz is compressed; unpack it first"),
    "k.pkl": (b"", "pkl is Python objects, which could run code; write them as JSONL"),
    "l.xml": (b"<a/>", f"unknown ending '.xml'; it must be one of {', '.join(ENDINGS)}"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str, tmp_path: Path) -> None:
    content, expected = FAULTS[name]
    (tmp_path / name).write_bytes(content)
    assert fault(str(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'\n  {"a": 1}'),
        ("b.json", codecs.BOM_UTF8 + b"[1]"),
        ("c.JSON", '{"a": "\u732b"}'.encode("utf-16")),
        ("d.tsv", "a\tb".encode("utf-16")),
        ("e.parquet", b"PAR1"),
        ("f.arrow", b"\xff\xff\xff\xff"),
        ("g.txt", b"anything"),
        ("h.csv", b""),  # that it has no samples is said when it is read
    ],
)
def test_what_may_be_read(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert fault(str(tmp_path / name)) == ""


def test_every_ending_has_its_reader() -> None:
    assert set(READERS) == set(ENDINGS)


def test_folders_and_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    (tmp_path / "images").mkdir()
    assert fault(str(tmp_path)) == ""
    assert fault(f"{tmp_path}/images") == "an empty folder"
    assert fault(f"{tmp_path}/trian.jsonl").endswith("that folder are train.jsonl; did you mean train.jsonl?")
    assert fault(f"{tmp_path}/gone/a.csv") == f"no such file (nor a folder {tmp_path}/gone)"
    for number in range(9):
        (tmp_path / f"{number}.csv").touch()
    assert fault(f"{tmp_path}/x.csv").endswith("are 0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 5 more")


def test_each_file_is_told_of_once(tmp_path: Path) -> None:
    gone = f"{tmp_path}/gone.json"
    data = DataConfig(name="files", train=gone, eval=gone, test=f"{tmp_path}/a.xml", annotations=f"{tmp_path}/b.json")
    assert [line.partition("=")[0] for line in problems(data, ("train", "eval", "test"))] == [
        "data.train",
        "data.annotations",
        "data.test",
    ]


@pytest.mark.parametrize(
    "name", ["donn\u00e9e.jsonl", "a=b.jsonl", "a, b.jsonl", "a[1]{2}.jsonl", "it's.jsonl", "sub\\a.jsonl"]
)
def test_paths_are_taken_as_typed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"PK")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert command("data=files", f"data.train={name}", "data.eval=~/gone.jsonl", "data.root=~") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"error data.train={name}: not JSON: it begins with neither {{ nor [",
        "error data.eval=~/gone.jsonl: no such file",
    ]


def test_paths_of_a_sweep_are_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("-m", "data=files", "data.train=donn\u00e9e.jsonl,b.jsonl") == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "error data.train=donn\u00e9e.jsonl",
        "error data.train=b.jsonl",
    ]


def test_a_wrong_file_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    code = "import sys; from vlatrain.cli.main import main; status = main(sys.argv[1:]); print(status, 'torch' in sys.modules)"
    words = ["data=files", f"data.train={tmp_path}/gone.jsonl"]
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout == "2 False\n"
    assert "no such file" in run.stderr
