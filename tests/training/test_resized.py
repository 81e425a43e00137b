"""Kept resized images: the same pixels, kept once, by whoever loads them, and only where that saves time."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlatrain.backbones.architecture import image_processor_class
from vlatrain.config import DataConfig, TrainerConfig, disk_cache
from vlatrain.data.augment import Augmented
from vlatrain.data.images import FilePicture, header_of, load_at
from vlatrain.data.sample import Sample
from vlatrain.training import resized as module
from vlatrain.training.resized import FOLDER, IMAGES, SUMS, Resized, keep_resized, resized

PROCESSORS = {
    "blip": {"size": {"height": 24, "width": 20}},
    "clip": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    "siglip": {"size": {"height": 16, "width": 16}},
    "vit": {"size": {"height": 18, "width": 18}},
}


def processor(name: str = "blip") -> Any:
    return image_processor_class(name)(**PROCESSORS[name])


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Six samples of five images, whose headers are known."""
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(module, "SLOW", 0.0)
    monkeypatch.setattr(module, "GAIN", 0.0)
    shown = [FilePicture(tmp_path / f"{number}.jpg") for number in range(5)]
    for number, picture in enumerate(shown):
        noise(90 + 8 * number, 70, number).save(picture.path)
        assert header_of(picture)
    return [Sample(str(number), shown[number % 5]) for number in range(6)]


def backbone(name: str = "blip") -> Any:
    made = SimpleNamespace(image_processor=processor(name), jpeg_side=48, fixed_side=24, resized=None)
    made.config = SimpleNamespace(name=name)
    return made


def kept(samples: Any, uses: int = 2, **settings: Any) -> Resized | None:
    """What a backbone has after it was asked to keep images."""
    made = backbone()
    keep_resized(made, TrainerConfig(**{"cache": "auto", **settings}), {"train": samples}, {"train": uses}, None)
    return made.resized  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(90, 70), (24, 24), (20, 24), (7, 300)])
def test_the_processor_makes_the_same_of_a_kept_image(name: str, size: tuple[int, int]) -> None:
    image, made = noise(*size, 1), processor(name)
    small = resized(made, image)
    assert small is not None
    assert small.dtype == np.uint8
    whole = made(images=[image], return_tensors="np")["pixel_values"]
    assert small.shape == (*whole.shape[2:], 3)
    again = made(images=[Image.fromarray(small)], return_tensors="np")["pixel_values"]
    assert again.tobytes() == whole.tobytes()


def of_its_size(images: list[Any], do_rescale: bool = True, **_: Any) -> dict[str, Any]:
    """A processor that also says what size an image had."""
    made = processor()(images=images, do_rescale=do_rescale, do_normalize=do_rescale, return_tensors="np")
    return {**made, "sizes": np.array([image.size for image in images])}


def of_fractions(images: list[Any], **_: Any) -> dict[str, Any]:
    """A processor that leaves no whole numbers."""
    return {"pixel_values": np.stack([np.asarray(image).transpose(2, 0, 1) / 3 for image in images])}


@pytest.mark.parametrize("strange", [of_its_size, of_fractions])
def test_what_would_not_be_the_same_is_not_kept(strange: Any) -> None:
    assert resized(strange, noise(50, 40, 1)) is None


def test_an_image_is_decoded_once(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    store, made = kept(samples), processor()
    assert store is not None
    expected = [made(images=[load_at(sample.image, 48)], return_tensors="np")["pixel_values"] for sample in samples]
    decoded: list[Any] = []

    def loading(picture: Any, side: int) -> Any:
        decoded.append(picture)
        return load_at(picture, side)

    monkeypatch.setattr(module, "load_at", loading)
    for _ in range(3):
        found = [made(images=[store(sample.image)], return_tensors="np")["pixel_values"] for sample in samples]
        assert [one.tobytes() for one in found] == [one.tobytes() for one in expected]
        assert len(decoded) == 5
    again = kept(samples)
    assert again is not None
    travelled = pickle.loads(pickle.dumps(again))
    assert travelled(samples[1].image).size == again(samples[1].image).size == (20, 24)
    store(FilePicture(samples[0].image.path))  # type: ignore[attr-defined]
    decoded.clear()
    other = FilePicture(Path(samples[0].image.path).with_name("6.jpg"))  # type: ignore[attr-defined]
    noise(9, 9, 3).save(other.path)
    assert [store(other).size for _ in range(2)] == [(9, 9)] * 2
    assert decoded == [other] * 2


def test_what_another_process_keeps_is_there(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    store = kept(samples)
    assert store is not None
    process = multiprocessing.get_context("fork").Process(target=store, args=(samples[2].image,))
    process.start()
    process.join()
    monkeypatch.setattr(module, "load_at", None)
    assert store(samples[2].image).size == (20, 24)


def test_a_damaged_image_is_loaded_again(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    store = kept(samples)
    assert store is not None
    whole = [np.asarray(store(sample.image)).tobytes() for sample in samples]
    store.images[1, 3, 3, 0] ^= 1
    with monkeypatch.context() as patch:
        decoded: list[Any] = []
        patch.setattr(module, "load_at", lambda picture, side: decoded.append(picture) or load_at(picture, side))
        assert [np.asarray(store(samples[number].image)).tobytes() for number in (0, 1, 1)] == [
            whole[n] for n in (0, 1, 1)
        ]
        assert decoded == [samples[1].image]
    for name in (IMAGES, SUMS, module.ABOUT):
        file = store.folder / name
        file.write_bytes(file.read_bytes()[:7])
        store = kept(samples)
        assert store is not None
        assert not store.sums.any()


def test_changed_files_have_another_folder(samples: list[Sample]) -> None:
    first = kept(samples)
    noise(80, 80, 77).save(samples[0].image.path)  # type: ignore[attr-defined]
    second = kept(samples)
    assert first is not None
    assert second is not None
    assert first.folder != second.folder
    assert {*disk_cache.folders(FOLDER)} == {first.folder, second.folder}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cache": "off"}, ""),
        ({"cache": "memory"}, ""),
        ({"uses": 1}, ""),
        ({"cache_gb": 1e-9}, "0.0 GB have no room (trainer.cache_gb=1e-09"),
        ({"slow": 10.0}, ""),
        ({"gain": 1e9}, ""),
        ({"crop": 0.5}, "cropped or flipped"),
        ({"place": "0.jpg"}, "cannot be used"),
        ({}, "kept in"),
        ({"cache": "disk"}, "kept in"),
    ],
    ids=str,
)
def test_when(
    settings: dict[str, Any], said: str, samples: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlatrain")
    monkeypatch.setattr(module, "SLOW", settings.pop("slow", 0.0))
    monkeypatch.setattr(module, "GAIN", settings.pop("gain", 0.0))
    if place := settings.pop("place", ""):
        monkeypatch.setenv("VLATRAIN_CACHE", str(Path(samples[0].image.path).with_name(place)))
    if crop := settings.pop("crop", 0.0):
        samples = Augmented(samples, {"": DataConfig(crop=crop)})
    found = kept(samples, **settings)
    messages = [record.getMessage() for record in caplog.records]
    assert (found is not None) == (said == "kept in")
    assert len(messages) == bool(said)
    assert all(said in message for message in messages)


@pytest.mark.slow
def test_a_training_is_bit_for_bit_the_same(samples: list[Sample], tmp_path: Path) -> None:
    from vlatrain import compose, train

    lines = [json.dumps({"image": f"{number}.jpg", "caption": f"noise {number}"}) for number in range(5)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    losses = []
    for number, cache in enumerate(("off", "auto", "auto")):
        run = train(
            compose(
                "task=captioning", "adapter.points=[vision.*.*]", "data=files",
                f"data.train={tmp_path}/train.jsonl", "trainer.batch_size=2", "trainer.epochs=3",
                "data.eval_fraction=0.2", f"trainer.cache={cache}", "trainer.log_every=1", f"run.dir={tmp_path / str(number)}",
                "trainer.workers=2",
            )
        )  # fmt: skip
        records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([record.get("loss") for record in records])
        assert len(disk_cache.folders(FOLDER)) == (number > 0)
    assert losses[0] == losses[1] == losses[2]
