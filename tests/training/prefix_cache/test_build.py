"""The building pass: workers load, in order and with the trainer's numbers; and how many samples are computed at once."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import make_samples
from tests.training.conftest import captioning_with_adapters
from vlatrain.config import TrainConfig, TrainerConfig, UserError
from vlatrain.data.sample import Sample
from vlatrain.tasks import Task
from vlatrain.training.display import SILENT
from vlatrain.training.prefix_cache.build import DEVICE_BYTES, MOST, at_once
from vlatrain.training.prefix_cache.compute import PrefixCache, cache_prefix


class Noted:
    """An image that notes which process loads it."""

    def __init__(self, image: Any, file: Path) -> None:
        self.image, self.key, self.file = image, image.key, file

    def load(self) -> Any:
        with self.file.open("a") as notes:
            notes.write(f"{os.getpid()}\n")
        return self.image.load()


class Unreadable(Noted):
    def load(self) -> Any:
        raise UserError("photo.jpg: truncated")


@pytest.fixture(scope="module")
def task() -> Task:
    return captioning_with_adapters()


def keep(task: Task, samples: list[Sample], workers: int) -> PrefixCache:
    trainer = TrainerConfig(batch_size=3, cache="memory", workers=workers)
    config = TrainConfig(task=task.config, model=task.backbone.config, trainer=trainer)
    found = cache_prefix(task.backbone, config, {"train": samples}, {"train": 3.0}, "fp32", SILENT)
    task.backbone.prefix_replay = task.backbone.cache = None
    assert found is not None
    return found


def test_workers_load_the_images_and_what_is_kept_is_the_same(task: Task, tmp_path: Path) -> None:
    samples = make_samples()
    alone = keep(task, samples, 0).read(samples, asked=False)["vision"]
    noted = [replace(one, image=Noted(one.image, tmp_path / "notes")) for one in samples]
    together = keep(task, noted, 2).read(samples, asked=False)["vision"]
    assert torch.equal(alone, together)
    first, *rest = map(int, (tmp_path / "notes").read_text().split())
    assert first == os.getpid(), "one sample is tried, for its size"
    assert len(rest) == len({sample.image.key for sample in samples})
    assert os.getpid() not in rest
    assert len(set(rest)) == 2


def test_an_image_that_a_worker_cannot_read_is_the_users_error(task: Task, tmp_path: Path) -> None:
    samples = make_samples()
    samples[-1] = replace(samples[-1], image=Unreadable(SimpleNamespace(key="bad"), tmp_path))
    with pytest.raises(UserError, match=r"photo\.jpg: truncated"):
        keep(task, samples, 1)


def test_a_batch_on_a_gpu_is_what_the_budgets_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64_000_000))
    assert at_once(2, need=1_000_000, given=1000, workers=0) == MOST
    assert at_once(2, need=int(DEVICE_BYTES / 20), given=1000, workers=0) == 20
    assert at_once(2, need=int(DEVICE_BYTES), given=1000, workers=0) == 2, "never less than what is known to fit"
    # a container's 64 MB of shared memory, half of which 4 workers may fill with 9 batches of images of 384 pixels
    assert at_once(2, need=1_000_000, given=4 * 3 * 384 * 384, workers=4) == 2
    assert at_once(1, need=1_000_000, given=4 * 3 * 224 * 224, workers=4) == 5
    assert at_once(2, need=1_000_000, given=4 * 3 * 384 * 384, workers=0) == MOST
