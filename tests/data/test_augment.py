"""Views of pictures: what they show, which are drawn, and how they are found again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import make_samples
from vlatrain.config import DataConfig, TaskConfig, TrainConfig
from vlatrain.data.augment import Augmented, View, augmented
from vlatrain.data.images import BytesPicture, FilePicture

WIDTH, HEIGHT = 64, 48


def picture() -> BytesPicture:
    """Every pixel tells where it is."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return BytesPicture.from_image(Image.fromarray(pixels))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_crop_is_a_piece_of_the_picture(flip: float) -> None:
    shares, ratios = [], []
    for number in range(100):
        pixels = np.asarray(View(picture(), number, crop=0.5, flip=flip).load()).astype(int)
        height, width, _ = pixels.shape
        shares.append(width * height / (WIDTH * HEIGHT))
        ratios.append(width / height)
        steps = np.diff(pixels[..., 0], axis=1)
        assert (steps == (-1 if flip else 1)).all()
        assert (np.diff(pixels[..., 1], axis=0) == 1).all()
    assert 0.48 < min(shares) < 0.6 < 0.9 < max(shares) <= 1
    assert 0.7 < min(ratios) < 1 < max(ratios) < 1.4


def test_a_view_is_the_same_wherever_it_is_made_and_differs_from_others() -> None:
    one, same = View(picture(), 3, 0.5, 0.5), View(picture(), 3, 0.5, 0.5)
    others = [View(picture(), 4, 0.5, 0.5), View(picture(), 3, 0.6, 0.5), View(picture(), 3, 0.5, 0.4)]
    assert one.key == same.key
    assert one.load().tobytes() == same.load().tobytes()
    assert len({one.key, picture().key, *(other.key for other in others)}) == 5


def test_half_of_them_are_mirrored() -> None:
    mirrored = [np.asarray(View(picture(), n, 1.0, 0.5).load())[0, 0, 0] > 0 for n in range(200)]
    assert 70 < sum(mirrored) < 130


def test_views_are_drawn_from_k_and_every_one_of_them_is_known() -> None:
    samples = make_samples()
    drawn = Augmented(samples, {"": DataConfig(crop=0.5, views=3)})
    every = drawn.every()
    assert every is not None
    assert len(every) == 3 * len(samples)
    torch.manual_seed(0)
    counts = Counter(drawn[0].image.key for _ in range(300))
    assert counts.keys() == {sample.image.key for sample in every if sample.id == samples[0].id}
    assert min(counts.values()) > 60
    torch.manual_seed(5)
    first = [sample.image.key for sample in drawn]
    torch.manual_seed(5)
    assert [sample.image.key for sample in drawn] == first
    assert [sample.id for sample in drawn[:2]] == [sample.id for sample in samples[:2]]


def test_there_is_no_end_of_them_without_views_and_none_where_nothing_is_asked() -> None:
    samples = make_samples()
    config = TrainConfig(task=TaskConfig(name="vqa"), data=DataConfig(flip=0.5))
    drawn = augmented(samples, config)
    assert isinstance(drawn, Augmented)
    assert drawn.every() is None
    assert len({drawn[0].image.key for _ in range(20)}) == 20
    assert augmented(samples, TrainConfig(task=TaskConfig(name="vqa"))) is samples


def test_subtasks_of_a_joint_run_have_their_own() -> None:
    config = TrainConfig(task=TaskConfig(name="joint", subtasks={"vqa": {}, "captioning": {}}))
    config.data.subtasks = {"captioning": {"crop": 0.5, "views": 2}}
    samples = [replace(sample, subtask=subtask) for subtask in ("vqa", "captioning") for sample in make_samples()]
    drawn = augmented(samples, config)
    assert isinstance(drawn, Augmented)
    every = drawn.every() or []
    assert Counter(type(sample.image) is View for sample in every) == {False: len(samples) // 2, True: len(samples)}


@pytest.mark.parametrize("crop", [1.0, 0.3])
@pytest.mark.parametrize("lying", [False, True])
def test_boxes_go_with_every_view(crop: float, lying: bool, tmp_path: Path) -> None:
    """A white patch lies where its box is, in whatever is left of the picture, mirrored or not; none is cut."""
    image = Image.new("RGB", (80, 48))
    image.paste((255, 255, 255), (20, 12, 44, 30))
    exif = Image.Exif()
    exif[0x0112] = 6 if lying else 1
    image.save(tmp_path / "a.png", exif=exif)
    picture = FilePicture(tmp_path / "a.png")
    upright = picture.load()
    box = np.array(upright.convert("L").getbbox()) / np.tile(upright.size, 2)
    sample = replace(make_samples()[0], image=picture, boxes=(tuple(box.tolist()),), question="the Left patch, bright")
    mirrored = 0
    for found in Augmented([sample], {"": DataConfig(crop=crop, flip=0.5, views=30)}).every() or ():
        seen = found.image.load()
        expected = np.array(seen.convert("L").getbbox()) / np.tile(seen.size, 2)
        assert found.boxes[0] == pytest.approx(expected.tolist(), abs=1e-9)
        mirrored += found.question == "the right patch, bright"
        assert found.question in ("the Left patch, bright", "the right patch, bright")
    assert 5 < mirrored < 25


def test_views_without_boxes_are_those_they_were() -> None:
    assert View(picture(), 3, 0.5, 0.5).key == "c3b2b9465a44a3b89d95477f6974c099"
