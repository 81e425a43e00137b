"""Samples that are mapped from disk are those that are held in memory: every field, the order, and what is done with them."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.writing import FORMATS, files, write_images, write_records
from vlatrain.config import DataConfig, TaskConfig
from vlatrain.data import load, stored
from vlatrain.data.features import FeaturePicture
from vlatrain.data.images import BytesPicture, FilePicture, NoPicture, header_of, identity
from vlatrain.data.lazy import Lazy
from vlatrain.data.mapped import Mapped, NotStorableError, opened, write
from vlatrain.data.sample import Sample, Turn, fingerprint

Case = tuple[DataConfig, str, list[str]]


@pytest.fixture(autouse=True)
def maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of any size are kept."""
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(stored, "FEWEST", 0)
    monkeypatch.setattr(stored, "SMALLEST", 0)


def questions(folder: Path, kind: str = "jsonl", **more: Any) -> Path:
    names = write_images(folder, 10)
    records = [
        {"image": names[n % 10], "question": f"wie groß? {n}", "answers": ["a", f"b{n}"], "kind": "x" * (n % 3), "n": n, **more}
        for n in range(40)
    ]  # fmt: skip
    return write_records(folder / f"train.{kind}", records)


def of_format(kind: str) -> Callable[[Path], Case]:
    return lambda folder: (files(questions(folder, kind), eval_fraction=0.2), "vqa", ["train", "eval"])


def grouped(folder: Path) -> Case:
    return files(questions(folder), eval_fraction=0.2, groups=["kind"]), "vqa", ["train", "eval"]


def capped(folder: Path) -> Case:
    return files(questions(folder), eval_fraction=0.3, train_size=9, eval_size=4, seed=3), "vqa", ["train", "eval"]


def weighted(folder: Path) -> Case:
    answers = [{"answer": "a", "weight": 0.1}, {"answer": "b", "weight": 0.9}]
    return files(questions(folder, answers=answers)), "vqa", ["train"]


def by_column(folder: Path) -> Case:
    names = write_images(folder, 9)
    split = ("train", "val", "test")
    records = [{"image": name, "label": f"c{n % 2}", "split": split[n // 3]} for n, name in enumerate(names)]
    return files(write_records(folder / "all.csv", records)), "classification", ["train", "eval"]


def captions(folder: Path) -> Case:
    names = write_images(folder, 4)
    records = [{"image": names[n % 4], "caption": f"caption {n // 5}"} for n in range(20)]
    return files(write_records(folder / "captions.jsonl", records)), "captioning", ["train"]


def class_folders(folder: Path) -> Case:
    for name in ("cat", "dog"):
        write_images(folder / "data" / name, 6)
    return files(folder / "data", eval_fraction=0.3), "classification", ["train", "eval"]


def pairs(folder: Path) -> Case:
    Image.new("RGB", (4, 4)).save(folder / "COCO_val2014_000000000042.jpg")
    asked = [{"image_id": 42, "question": f"q{n}", "question_id": n} for n in range(3)]
    said = [{"question_id": n, "image_id": 42, "answers": [{"answer": f"a{k}"} for k in range(3)]} for n in range(3)]
    (folder / "q.json").write_text(json.dumps({"questions": asked, "data_subtype": "val2014"}))
    (folder / "a.json").write_text(json.dumps({"annotations": said}))
    return files(folder / "q.json", annotations=str(folder / "a.json")), "vqa", ["train"]


def conversations(folder: Path) -> Case:
    names = write_images(folder, 3)
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a \u00e9"}] * 2
    records: list[dict[str, Any]] = [
        {"image": name, "conversations": turns[: 2 + 2 * (n % 2)]} for n, name in enumerate(names)
    ]
    records.append({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]})
    return files(write_records(folder / "chat.json", records), text_only="drop"), "instruct", ["train"]


def of_text(folder: Path) -> Case:
    config, task, splits = conversations(folder)
    config.text_only = "train"
    return config, task, splits


def masks(folder: Path) -> Case:
    names = write_images(folder, 3)
    for number, name in enumerate(names):
        Image.new("L", (4, 4), number).save(folder / f"mask{name}")
    records = [{"image": name, "mask": f"mask{name}"} for name in names]
    return files(write_records(folder / "masks.jsonl", records)), "segmentation", ["train"]


def boxes(folder: Path) -> Case:
    names = write_images(folder, 3)
    records = [{"image": name, "expression": f"it {n}", "bbox": [0, 1, 1 + n, 3]} for n, name in enumerate(names)]
    columns = {"question": "expression", "boxes": "bbox"}
    return files(write_records(folder / "boxes.jsonl", records), columns=columns), "grounding", ["train"]


def several(folder: Path) -> Case:
    names = write_images(folder, 4)
    shown = [[names[n % 4], *names[: n % 3]] for n in range(9)]
    records = [{"images": list(dict.fromkeys(own)), "question": f"q{n}", "answer": "a"} for n, own in enumerate(shown)]
    return files(write_records(folder / "pairs.jsonl", records)), "vqa", ["train"]


def encoded(folder: Path) -> Case:
    names = write_images(folder, 4)
    cells = [base64.b64encode((folder / name).read_bytes()).decode() for name in names]
    records = [{"image": cells[n % 4], "question": "q", "answer": f"a{n}"} for n in range(8)]
    return files(write_records(folder / "inline.jsonl", records)), "vqa", ["train"]


def in_parquet(folder: Path) -> Case:
    names = write_images(folder, 4)
    records = [
        {"image": {"bytes": (folder / name).read_bytes(), "path": name}, "label": f"c{n % 2}"}
        for n, name in enumerate(names)
    ]
    return files(write_records(folder / "inline.parquet", records)), "classification", ["train"]


def broken(folder: Path) -> Case:
    file = questions(folder)
    (folder / "3.png").write_bytes(b"no image")
    return files(file, skip_broken=0.5), "vqa", ["train"]


CASES = [
    *map(of_format, FORMATS),
    grouped,
    capped,
    weighted,
    by_column,
    captions,
    several,
    class_folders,
    pairs,
    conversations,
    of_text,
    masks,
    boxes,
    encoded,
    in_parquet,
    broken,
]
NAMES = [*FORMATS, *(case.__name__ for case in CASES[len(FORMATS) :])]


def everything(sample: Sample) -> dict[str, Any]:
    """What is compared, and what equality of samples, and of pictures, leaves out."""
    values = {field.name: getattr(sample, field.name) for field in fields(Sample)}
    for name in ("image", "mask"):
        if (picture := values[name]) is not None:
            pixels = np.asarray(picture.load()).tobytes()
            values[name] = (
                type(picture),
                repr(picture),
                picture.name,
                identity(picture),
                picture.key,
                header_of(picture),
                pixels,
            )
    return values


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_samples_are_those_held_in_memory(
    case: Callable[[Path], Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, task, splits = case(tmp_path)
    caplog.set_level("INFO", "vlatrain")

    def loaded(fewest: int) -> tuple[dict[str, Any], list[str]]:
        caplog.clear()
        monkeypatch.setattr(stored, "FEWEST", fewest)
        found = load(config, TaskConfig(task), splits)
        said = [record.getMessage() for record in caplog.records if not record.getMessage().startswith("Data: ")]
        return {**found}, said

    held, said = loaded(10**9)
    for fewest in (0, 10**9):  # read and kept, then found
        mapped, again = loaded(fewest)
        assert again == said
        assert list(mapped) == list(held)
        for split, samples in held.items():
            assert isinstance(samples, list)
            assert isinstance(mapped[split], Mapped)
            assert len(mapped[split]) == len(samples)
            expected = [everything(sample) for sample in samples]
            assert [everything(sample) for sample in mapped[split]] == expected
            assert [everything(mapped[split][place]) for place in range(len(samples))] == expected
            assert fingerprint(mapped[split]) == fingerprint(samples)


def test_travels_to_other_processes_as_a_path(tmp_path: Path) -> None:
    config, task, splits = grouped(tmp_path)
    train = load(config, TaskConfig(task), splits)["train"]
    data = pickle.dumps([train, train[3:5], train[0]])
    assert len(data) < 3000
    whole, some, one = pickle.loads(data)
    assert isinstance(whole, Lazy)
    assert list(whole) == list(train)
    assert list(some) == list(train)[3:5]
    assert one == train[0]


def test_the_hash_of_a_file_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, task, splits = captions(tmp_path)
    train = load(config, TaskConfig(task), splits)["train"]
    first = train[0].image.key
    assert isinstance(train[0].image, FilePicture)
    Path(train[0].image.path).unlink()
    assert train[0].image.key == first


def plain(**values: Any) -> Sample:
    return Sample(**{"id": "1", "image": BytesPicture(b"x"), **values})


@pytest.mark.parametrize(
    "values",
    [
        {"turns": (Turn("a", "b"), Turn("c"))},
        {"weights": (0.1, 1e-300, 3.0)},
        {"extra": (("n", 1), ("x", 1.0), ("t", True), ("s", "\n"), ("inf", float("inf")), ("nan", float("nan")))},
        {"image": FeaturePicture("a.npy")},
        {"image": FilePicture("no such file")},
        {"image": NoPicture("t:3")},
        {"mask": BytesPicture(b"y", "mask")},
        {"boxes": ((0.1, 1 / 3, 0.5, 1.0), (0.0, 0.0, 1e-9, 1.0))},
    ],
)
def test_values_come_back(values: dict[str, Any], tmp_path: Path) -> None:
    samples = [plain(), plain(**values, id="2")]
    write(tmp_path, {"train": samples}, [], lambda path: None, [])
    found = opened(tmp_path)[0]["train"]
    assert [repr(sample) for sample in found] == [repr(sample) for sample in samples]
    assert [type(sample.image) for sample in found] == [type(sample.image) for sample in samples]


@pytest.mark.parametrize(
    "values", [{"question": "\ud800"}, {"extra": (("n", b"bytes"),)}, {"extra": (("n", {1: 2}),)}, {"image": object()}]
)
def test_what_files_cannot_give_back_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    if "image" in values:
        values = {"image": type("Drawn", (), {"key": "k"})()}
    with pytest.raises(NotStorableError):
        write(tmp_path, {"train": [plain(), plain(**values, id="2")]}, [], lambda path: None, [])
