"""Whatever has become of the cache's folder, a run goes on: with what can be read, in memory, or without, and one line says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import make_samples
from tests.disk import FORK, room
from tests.training.conftest import captioning_with_adapters
from vlatrain.config import TrainConfig, TrainerConfig
from vlatrain.tasks import Task
from vlatrain.training.batches import SharedBatches
from vlatrain.training.display import SILENT
from vlatrain.training.prefix_cache import store
from vlatrain.training.prefix_cache.compute import PrefixCache, cache_prefix

SAMPLES = make_samples()
OFTEN, ONCE = {"train": 1000.0}, {"train": 1.01}  # how often each is seen: it pays to keep it, or not


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture(scope="module")
def task() -> Task:
    return captioning_with_adapters()


@pytest.fixture(autouse=True)
def _as_new(task: Task) -> Iterator[None]:
    yield
    task.backbone.prefix_replay = task.backbone.cache = None


def keep(task: Task, way: str, uses: dict[str, float], split: str = "train", **more: Any) -> PrefixCache | None:
    config = TrainConfig(
        task=task.config, model=task.backbone.config, trainer=TrainerConfig(batch_size=2, cache=way), **more
    )
    return cache_prefix(task.backbone, config, {split: SAMPLES}, uses, "fp32", SILENT)


def loss(task: Task) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return task.loss(task.collate(SAMPLES))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_trial_that_ends_in_off_leaves_nothing(task: Task, place: Path) -> None:
    assert keep(task, "auto", ONCE) is None
    assert list(place.iterdir()) == []
    assert keep(task, "auto", {}, "asked") is None  # as predict and eval do


def test_what_a_killed_run_has_kept_is_read(task: Task, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = loss(task)
    monkeypatch.setattr(store, "SHARD_BYTES", 1)
    flush = store.Disk.flush
    for shards in (2, 4):  # the second has all of them written, and nothing else done

        def flush_and_die(self: store.Disk, shards: int = shards) -> None:
            flush(self)
            if len(list(place.glob("*/*.safetensors"))) == shards:
                os.kill(os.getpid(), signal.SIGKILL)

        def child(flush_and_die: Any = flush_and_die) -> None:
            store.Disk.flush = flush_and_die  # type: ignore[method-assign]
            keep(task, "disk", OFTEN)

        process = FORK.Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(store.folders()) == 1
    found = keep(task, "auto", {}, "asked")
    assert found is not None
    assert found.facts["computed"] == 0
    assert torch.equal(loss(task), without)


@pytest.mark.parametrize("way", ["auto", "disk"])
@pytest.mark.parametrize("kind", ["nowhere", "a file"])
def test_a_place_that_cannot_be_is_told_and_the_run_goes_on(
    kind: str, way: str, task: Task, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without = loss(task)
    if kind == "nowhere":
        monkeypatch.setenv("VLATRAIN_CACHE", "/proc/nowhere")
    else:
        place.touch()
    found = keep(task, way, OFTEN)
    assert (found and found.facts["where"]) == ("memory" if way == "auto" else None)
    (told,) = warnings(caplog)
    assert told.startswith(f"Cache: {store.kept_folder()} cannot be written (")
    assert "set VLATRAIN_CACHE to a folder" in told
    assert torch.equal(loss(task), without)
    assert keep(task, "auto", {}, "asked") is None  # as predict and eval do


def test_a_disk_that_is_full_in_the_middle_is_told_and_the_rest_is_computed_each_time(
    task: Task, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without = loss(task)
    monkeypatch.setattr(store, "SHARD_BYTES", 1)
    flush, done = store.Disk.flush, []

    def filling(self: store.Disk) -> None:
        done.append(self)
        with room(100 if len(done) > 2 else 10**9):
            flush(self)

    monkeypatch.setattr(store.Disk, "flush", filling)
    found = keep(task, "disk", OFTEN)
    assert found is not None
    assert len(list(place.glob("*/*"))) == 2
    (told,) = warnings(caplog)
    assert "cannot be written (File too large); 2 of 8 prefixes are not kept, and computed each time" in told
    assert found.read(SAMPLES[:6], asked=False)
    assert found.read(SAMPLES, asked=False) == {}
    assert torch.equal(loss(task), without)
    monkeypatch.undo()
    monkeypatch.setenv("VLATRAIN_CACHE", str(place))
    again = keep(task, "disk", OFTEN)
    assert again is not None
    assert again.facts["computed"] == 4, "the next run goes on where this one had to stop"


def test_a_disk_that_is_full_from_the_start_leaves_auto_the_memory(
    task: Task, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with room(100):
        found = keep(task, "auto", OFTEN)
    assert found is not None
    assert found.facts["where"] == "memory"
    assert len(warnings(caplog)) == 1
    assert list(place.iterdir()) == []


def test_what_is_pruned_while_it_is_used_changes_nothing(task: Task, place: Path) -> None:
    without = loss(task)
    for _ in range(2):  # what this run has written, and what it has found
        found = keep(task, "disk", OFTEN)
        assert found is not None
        kept = {path.name: path.read_bytes() for path in place.glob("*/*")}
        (folder,) = store.folders()
        store.clear([folder])
        assert not folder.exists()
        assert found.read(SAMPLES, asked=False)
        assert torch.equal(loss(task), without)
        folder.mkdir()
        for name, data in kept.items():
            (folder / name).write_bytes(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_that_is_damaged_is_computed_where_it_is_read_and_kept_anew_by_the_next_run(
    workers: int, task: Task, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = loss(task)
    keep(task, "disk", OFTEN)
    (shard,) = place.glob("*/*.safetensors")
    data = shard.read_bytes()
    shard.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    found = keep(task, "disk", OFTEN)
    assert found is not None
    assert found.facts["computed"] == 0
    (batch,) = SharedBatches("cpu", len(SAMPLES), workers)(SAMPLES, task.collate, lambda made: made)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(task.loss(batch), without)
    if not workers:  # a worker's lines are in its own process
        (told,) = warnings(caplog)
        assert told.startswith(f"Cache: {shard} is damaged")
    assert not shard.exists()
    again = keep(task, "disk", OFTEN)
    assert again is not None
    assert again.facts["computed"] == len({sample.image.key for sample in SAMPLES})
    assert torch.equal(loss(task), without)


def test_what_is_whole_is_read_where_nothing_can_be_written(
    task: Task, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert keep(task, "disk", OFTEN) is not None
    (folder,) = store.folders()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for path in (folder, place):
        path.chmod(0o555)
    try:
        found = keep(task, "auto", OFTEN)
    finally:
        for path in (folder, place):
            path.chmod(0o755)
    assert found is not None
    assert (found.facts["where"], found.facts["computed"]) == ("disk", 0)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert warnings(caplog) == []
