"""Features in place of images: checked by file and line before anything loads, and trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands import command
from tests.conftest import model_config
from vlatrain.config import DataConfig, TaskConfig, UserError
from vlatrain.data import load
from vlatrain.data.features import FeaturePicture, check_shown, picture_of
from vlatrain.data.images import FilePicture
from vlatrain.data.sample import Sample

RANDOM = np.random.RandomState(0)


def table(folder: Path, count: int = 8, width: int = 6, **changed: Any) -> Path:
    """A file of samples with features of S = 3 and 4; some of them changed, by number."""
    rows = []
    for number in range(count):
        found = changed.get(f"n{number}", RANDOM.randn(3 + number % 2, width).astype(np.float16))
        if found is not None:
            np.save(folder / f"{number}.npy", found)
        rows.append({"image": f"{number}.npy", "question": "is it red?", "answer": "yes" if number % 2 else "no"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "train.jsonl"


def test_features_are_loaded_as_they_are(tmp_path: Path) -> None:
    found = load(
        DataConfig(name="files", train=str(table(tmp_path)), eval_fraction=0.25), TaskConfig("vqa"), ["train", "eval"]
    )
    picture = found["train"][0].image
    assert isinstance(picture, FeaturePicture)
    expected = np.load(picture.path).astype(np.float32)
    assert picture.load().dtype == np.float32
    assert np.array_equal(picture.load(), expected)
    assert picture.key != found["train"][1].image.key
    assert type(picture_of("a.png")) is FilePicture


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such image"),
        (np.zeros((2, 3, 4)), "2 x 3 x 4, and not S x width"),
        (np.zeros((0, 6)), "0 x 6, and not S x width"),
        (np.array([["a", "b"]]), "and not numbers"),
        (np.array([[{}, {}]], dtype=object), "no NumPy file of numbers"),
    ],
)
def test_a_bad_file_is_told_by_file_and_line(tmp_path: Path, content: Any, told: str) -> None:
    config = DataConfig(name="files", train=str(table(tmp_path, n3=content)), eval_fraction=0.25)
    with pytest.raises(UserError) as error:
        load(config, TaskConfig("vqa"), ["train", "eval"])
    (problem,) = error.value.problems
    assert "train.jsonl:4: " in problem
    assert told in problem


def test_a_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    config = DataConfig(name="files", train=str(table(tmp_path)), eval_fraction=0.25)
    whole = (tmp_path / "2.npy").read_bytes()
    (tmp_path / "2.npy").write_bytes(whole[:-5])
    with pytest.raises(UserError, match=r"train.jsonl:3: not features: .* cut off"):
        load(config, TaskConfig("vqa"), ["train", "eval"])


def samples(folder: Path) -> list[Sample]:
    return load(DataConfig(name="files", train=str(table(folder)), eval_fraction=0.25), TaskConfig("vqa"), ["train"])[
        "train"
    ]


def test_a_model_of_images_wants_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.jsonl:\d: .*\.npy holds features, and model=blip takes images"):
        check_shown(model_config("blip"), samples(tmp_path))
    check_shown(model_config("blip"), [Sample("a", FilePicture("a.png"))])


def training(folder: Path, *words: str) -> int:
    text = "{n_embd: 32, n_layer: 2, n_head: 4, n_positions: 96, vocab_size: 300}"
    return command(
        "task=vqa", "model=composite", "model/vision=features", "model.random_init=true", "adapter=cross_modal",
        f"model.config.text_config={text}", "data=files", f"data.train={folder}/train.jsonl", "data.eval_fraction=0.25",
        "trainer.max_steps=2", "trainer.batch_size=3", "trainer.accumulate=1", "trainer.threads=1",
        f"run.dir={folder}/run", *words,
    )  # fmt: skip


def test_another_width_is_told_before_anything_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(tmp_path)
    assert training(tmp_path) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "0.npy has features of width 6, and the model takes 2048" in told
    assert "model.config.vision_config.hidden_size=6 makes it take these" in told
    assert "... and 3 more of the kind" in told


def test_images_where_features_are_wanted_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("model/vision=features", "model.random_init=true", "trainer.batch_size=2", "data.train_size=4")
    assert command("model=composite", *words, "data.eval_size=2", "trainer.accumulate=1") == 2
    assert "model/vision=features takes features that were extracted before" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.slow
def test_training_and_asking_on_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(tmp_path)
    assert training(tmp_path, "model.config.vision_config.hidden_size=6") == 0
    ask = ("predict", f"run={tmp_path}/run", f"image={tmp_path}/0.npy", "question=is it red?")
    assert command(*ask) == 0
    capsys.readouterr()
    np.save(tmp_path / "odd.npy", np.zeros((3, 7)))
    assert command(*ask[:2], f"image={tmp_path}/odd.npy", ask[3]) == 2
    assert "odd.npy has features of width 7, and the model takes 6" in " ".join(capsys.readouterr().err.split())


def test_a_model_that_takes_one_image_says_so_by_name() -> None:
    pair = Sample("a", FilePicture("a.png"), source="t.jsonl:3", more=(FilePicture("b.png"),))
    with pytest.raises(UserError) as caught:
        check_shown(model_config("blip"), [pair])
    said = "t.jsonl:3: 2 images, and model=tiny_blip takes one for a text; composites "
    said += "(tiny_composite) and models that chat (llava, qwen2_5_vl, smolvlm) take several"
    assert [said.replace("tiny_blip", model_config("blip").name)] == caught.value.problems
    for name in ("tiny_composite", "llava", "qwen3_vl", "smolvlm", "paligemma"):
        check_shown(model_config(name), [pair])
    for name in ("blip2_opt", "florence2", "vilt", "clip"):
        with pytest.raises(UserError, match="takes one for a text"):
            check_shown(model_config(name), [pair])
