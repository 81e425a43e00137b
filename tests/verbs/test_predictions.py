"""Predictions name their images, and keep the data's other columns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlatrain.config import DataConfig, TaskConfig, TrainConfig
from vlatrain.data.images import BytesPicture, FilePicture
from vlatrain.data.sample import Sample
from vlatrain.data.shapes import build
from vlatrain.runs import RunFolder
from vlatrain.tasks import Evaluation
from vlatrain.verbs.predictions import write_predictions


def written(folder: Path, samples: list[Sample], config: TrainConfig, **more: Any) -> list[dict[str, Any]]:
    records = [{"id": sample.id, "prediction": "a", **more} for sample in samples]
    write_predictions(RunFolder(folder), "eval", Evaluation({}, {}, records), samples, config)
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_files_are_named_and_columns_kept(tmp_path: Path) -> None:
    samples = [Sample("t.csv:2", FilePicture("photos/ü.png"), extra=(("type", "yes/no"), ("n", 3)))]
    assert written(tmp_path, samples, TrainConfig(), score=100.0) == [
        {
            "id": "t.csv:2",
            "image": "photos/ü.png",
            "prediction": "a",
            "score": 100.0,
            "columns": {"type": "yes/no", "n": 3},
        }
    ]
    assert not (tmp_path / "images").exists()


def test_what_is_no_file_is_written_where_that_is_asked_for(tmp_path: Path) -> None:
    scenes = build("vqa", "eval", 2, 0)
    given = BytesPicture.from_image(Image.new("RGB", (3, 2), "red"))
    samples = [*scenes, Sample("a/b:1", given), Sample("a b?1", given), Sample("f", FilePicture("x.png"))]
    assert [record["image"] for record in written(tmp_path / "no", samples, TrainConfig())] == [None] * 4 + ["x.png"]
    config = TrainConfig(data=DataConfig(save_images=True))
    names = [record["image"] for record in written(tmp_path / "yes", samples, config)]
    assert names == ["images/eval-0.png", "images/eval-1.png", "images/a_b_1.png", "images/a_b_1-3.png", "x.png"]
    for name, sample in zip(names[:4], samples, strict=False):
        with Image.open(tmp_path / "yes" / name) as image:
            assert np.array_equal(np.asarray(image), np.asarray(sample.image.load()))


def test_of_a_joint_run_each_subtask_says_for_itself(tmp_path: Path) -> None:
    one, two = build("vqa", "eval", 2, 0)
    samples = [replace(one, id="a/1", subtask="a"), replace(two, id="b/1", subtask="b")]
    task = TaskConfig("joint", metric="mean", subtasks={"a": {"name": "vqa"}, "b": {"name": "vqa"}})
    config = TrainConfig(task=task, data=DataConfig(subtasks={"b": {"save_images": True}}))
    assert [record["image"] for record in written(tmp_path, samples, config)] == [None, "images/b_1.png"]


def test_records_of_no_sample_stay_as_they_are(tmp_path: Path) -> None:
    """A task of one's own may write what it likes."""
    write_predictions(RunFolder(tmp_path), "test", Evaluation({}, {}, [{"text": "x"}]), [], TrainConfig())
    assert (tmp_path / "predictions-test.jsonl").read_text() == '{"text": "x"}\n'
