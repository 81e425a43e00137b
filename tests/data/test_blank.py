"""Grey images in place of all: texts stay as they are, and nothing that depends on what an image shows is left."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import command, tiny_run
from tests.conftest import make_samples
from tests.data.test_features import table, training
from vlatrain.config import DataConfig, TaskConfig, TrainConfig
from vlatrain.data.blank import Blanked, as_seen
from vlatrain.data.images import FilePicture
from vlatrain.data.lazy import Lazy, column, named, pictures, select
from vlatrain.data.mapped import opened, write
from vlatrain.data.sample import Sample, fingerprint

MODELS = {  # by task a model whose training takes a second
    "vqa": "tiny_blip", "captioning": "tiny_blip", "grounding": "tiny_blip", "joint": "tiny_blip", "retrieval": "tiny_clip",
    "classification": "tiny_vit", "segmentation": "tiny_vit", "instruct": "tiny_composite",
}  # fmt: skip


def test_texts_stay_and_images_say_nothing() -> None:
    samples = [replace(one, more=(one.image,)) if place % 3 else one for place, one in enumerate(make_samples())]
    blank = Blanked(samples, {""})
    assert [replace(one, image=was.image, more=was.more) for one, was in zip(blank, samples, strict=True)] == samples
    every = [one for sample in blank for one in sample.pictures]
    assert len(every) == sum(len(sample.pictures) for sample in samples)
    assert {one.key for one in every} == {blank[0].image.key} != {one.image.key for one in samples}
    assert len({one.load().tobytes() for one in every}) == 1
    assert np.ptp(np.asarray(blank[0].image.load())) == 0
    assert fingerprint(blank) == fingerprint(samples)


@pytest.mark.parametrize("mapped", [False, True])
def test_samples_are_chosen_among_as_they_are(mapped: bool, tmp_path: Path) -> None:
    """Places, columns, names and distinct pictures are those of the samples, in memory as on disk."""
    for number in range(3):
        Image.new("RGB", (4, 5), (40 * number, 9, 7)).save(tmp_path / f"{number}.png")
    held = [Sample(f"s{n}", FilePicture(tmp_path / f"{n % 3}.png"), f"q{n}", ("a",)) for n in range(7)]
    (tmp_path / "files").mkdir()
    write(tmp_path / "files", {"train": held}, [], lambda path: None, [])
    samples = opened(tmp_path / "files")[0]["train"] if mapped else held
    blank = Blanked(samples, {""})
    assert isinstance(blank, Lazy)
    assert len(blank) == 7
    assert [one.id for one in select(blank, [5, 1])] == ["s5", "s1"]
    assert list(column(blank, "question")) == [one.question for one in held]
    assert [one.path for one in column(blank, "image")] == [one.image.path for one in held]  # type: ignore[attr-defined]
    assert [one.name for one in pictures(blank)] == [str(tmp_path / f"{n}.png") for n in range(3)]
    assert blank.stamp != (samples.stamp if isinstance(samples, Lazy) else fingerprint(samples))


def test_of_a_joint_run_those_of_one_subtask(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vlatrain")
    config = TrainConfig(
        task=TaskConfig("joint", subtasks={"vqa": {}, "captioning": {}}),
        data=DataConfig(subtasks={"vqa": {"images": "blank"}}),
    )
    samples = [*named(make_samples(), "vqa"), *named(make_samples(), "captioning")]
    seen = as_seen({"train": samples}, config)["train"]
    assert [one.image is was.image for one, was in zip(seen, samples, strict=True)] == [False] * 8 + [True] * 8
    assert len([*pictures(seen)]) == 2 * len([*pictures(samples)])  # the same pictures, shown and not
    assert "data.images=blank: a grey image is in place of every one of vqa" in caplog.text
    plain = as_seen({"train": samples}, TrainConfig())
    assert plain["train"] is samples


def test_a_trained_run_is_asked_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is asked in the same words is answered in the same, whatever the image; with images it is not."""
    run = tiny_run(tmp_path / "run", "vqa", "adapter.init=normal", "adapter.init_std=0.3", "data.eval_size=60")
    apart = {}
    for images in ("blank", "shown"):
        out = tmp_path / images
        assert command("eval", f"run={run}", f"data.images={images}", f"output={out}") == 0
        answers = defaultdict(set)
        for line in map(json.loads, (out / "predictions.jsonl").read_text().splitlines()):
            answers[line["question"]].add((line["prediction"], round(line["probability"], 4)))
        apart[images] = max(map(len, answers.values()))
    assert apart["blank"] == 1 < apart["shown"]
    assert "a grey image is in place of every one" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", MODELS)
def test_every_task_learns_without_images(task: str, tmp_path: Path) -> None:
    """Trained from the texts alone; what is kept of a frozen prefix is of one image."""
    run = tiny_run(
        tmp_path / "run", task, f"model={MODELS[task]}", "data.images=blank", "adapter.points=['*.last2.ffn']"
    )
    assert json.loads((run / "metrics.json").read_text())["metrics"]


@pytest.mark.slow
def test_features_are_hidden_too(tmp_path: Path) -> None:
    table(tmp_path)
    width = "model.config.vision_config.hidden_size=6"
    assert training(tmp_path, width, "data.images=blank", "model.options.visual=both") == 0
