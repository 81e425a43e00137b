"""When samples are taken from what was kept, when they are read again, and what keeps them from being kept."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.data.writing import files, problems_of, write_images, write_records
from vlatrain.config import DataConfig, TaskConfig, TrainConfig, disk_cache
from vlatrain.data import load, reading, stored
from vlatrain.data.lazy import Lazy
from vlatrain.data.subtasks import load_run

TASK = TaskConfig("vqa")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(stored, "FEWEST", 19)
    monkeypatch.setattr(stored, "SMALLEST", 0)
    stored._warn.cache_clear()
    (tmp_path / "data").mkdir()
    names = write_images(tmp_path / "data", 5)
    records = [{"image": names[n % 5], "question": f"q{n}", "answer": "a", "label": f"c{n % 3}"} for n in range(20)]
    return files(write_records(tmp_path / "data" / "train.jsonl", records))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, as they are."""
    seen: list[str] = []
    read_table = reading.read_table

    def reading_table(path: str, *args: object) -> object:
        seen.append(path)
        return read_table(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "read_table", reading_table)
    return seen


def train(config: DataConfig, **options: int) -> list[str]:
    """Which samples are there."""
    found = load(config, TASK, ["train"], **options)["train"]
    assert isinstance(found, Lazy)
    return [f"{one.id} {one.question}" for one in found]


def touched(path: Path, later: int = 10) -> None:
    about = path.stat()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + later))


def folder(config: DataConfig) -> Path:
    assert config.train
    return Path(config.train).parent


CHANGES: dict[str, Callable[[DataConfig], object]] = {
    "nothing": lambda config: None,
    "what is not read": lambda config: write_images(folder(config) / "more", 1),
    "an option that changes no row": lambda config: setattr(config, "flip", 0.5),
    "the file": lambda config: touched(Path(str(config.train))),
    "an image": lambda config: touched(folder(config) / "3.png"),
    "an option": lambda config: setattr(config, "groups", ["label"]),
    "a cap": lambda config: setattr(config, "train_size", 7),
    "the seed": lambda config: setattr(config, "seed", 7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_is_read_again_where_something_has_changed(change: str, data: DataConfig, reads: list[str]) -> None:
    train(data)
    assert len(reads) == 1
    CHANGES[change](data)
    again = train(data)
    assert len(reads) == 1 + (list(CHANGES).index(change) > 2)
    assert len(again) == (7 if change == "a cap" else 20)
    train(data)
    assert len(reads) == 1 + (list(CHANGES).index(change) > 2)


def test_an_image_that_is_gone_is_found(data: DataConfig) -> None:
    train(data)
    (folder(data) / "3.png").unlink()
    assert any("no such image" in problem for problem in problems_of(data))
    Image.new("RGB", (4, 4)).save(folder(data) / "3.png")
    assert len(train(data)) == 20


def test_one_that_was_left_out_comes_back_when_it_is_mended(data: DataConfig) -> None:
    data.skip_broken = 0.5
    (folder(data) / "3.png").unlink()
    assert len(train(data)) == 16
    assert len(train(data)) == 16
    Image.new("RGB", (4, 4)).save(folder(data) / "3.png")
    assert len(train(data)) == 20


def test_a_changed_folder_of_classes_is_read_again(data: DataConfig, tmp_path: Path, reads: list[str]) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / "classes" / name, 11)
    config = files(tmp_path / "classes")

    def count() -> int:
        return len(load(config, TaskConfig("classification"), ["train"])["train"])

    assert (count(), count(), len(reads)) == (22, 22, 1)
    write_images(tmp_path / "classes" / "dog", 12)
    assert (count(), len(reads)) == (23, 2)


def test_few_rows_are_held_in_memory(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FEWEST", 20), ("SMALLEST", 10**6)):
        with monkeypatch.context() as patch:
            patch.setattr(stored, name, value)
            assert isinstance(load(data, TASK, ["train"])["train"], list)
    assert not disk_cache.folders(stored.FOLDER)


def test_what_depends_on_the_training_is_checked_each_time(data: DataConfig) -> None:
    train(data)
    assert "fewer than one batch of 21" in problems_of(data, batch_size=21)[0]


def test_a_damaged_table_is_made_anew(data: DataConfig, reads: list[str], caplog: pytest.LogCaptureFixture) -> None:
    whole = train(data)
    damages = [(name, flips) for name in ("about.json", "train.arrow", "pictures.arrow") for flips in (False, True)]
    for number, (name, flips) in enumerate(damages, start=2):
        (table,) = disk_cache.folders(stored.FOLDER)
        written = (table / name).read_bytes()
        (table / name).write_bytes(written[:40] + bytes([written[40] ^ 1]) + written[41:] if flips else written[:40])
        caplog.clear()
        assert train(data) == whole
        assert len(reads) == number
        assert "is made anew" in caplog.text
        assert train(data) == whole
        assert len(reads) == number


@pytest.mark.parametrize("place", ["/proc/nowhere", "a file"])
def test_a_folder_that_cannot_be_written_is_said_once(
    place: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / place))
    for _ in range(2):
        assert isinstance(load(data, TASK, ["train"])["train"], list)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "cannot be written" in said
    assert "VLATRAIN_CACHE" in said


def test_nothing_half_written_is_left(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk_cache, "flush", full)
        assert isinstance(load(data, TASK, ["train"])["train"], list)
    assert [path.suffix for path in disk_cache.place_of(stored.FOLDER).iterdir()] == [disk_cache.LOCK]
    train(data)


def test_the_least_used_go(data: DataConfig, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    monkeypatch.setattr(stored, "MOST", 2)
    for seed in (1, 2, 1, 3):
        data.seed = seed
        train(data)
        for table in disk_cache.folders(stored.FOLDER):
            touched(table, -(10**9))
    assert len(reads) == 3
    assert len(disk_cache.folders(stored.FOLDER)) == 2
    data.seed = 1
    train(data)
    assert len(reads) == 3


def _ids(config: DataConfig, start: object, found: object) -> None:
    stored.FEWEST, stored.SMALLEST = 19, 0
    count = 0
    read_table = reading.read_table

    def counted(*args: object) -> object:
        nonlocal count
        count += 1
        return read_table(*args)  # type: ignore[arg-type]

    reading.read_table = counted
    start.wait()  # type: ignore[attr-defined]
    samples = train(config)
    found.put((samples, count))  # type: ignore[attr-defined]


def test_of_processes_that_begin_together_one_reads(data: DataConfig) -> None:
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_ids, args=(data, start, found)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [found.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(samples == answers[0][0] for samples, _ in answers)
    assert sum(count for _, count in answers) == 1
    assert len(disk_cache.folders(stored.FOLDER)) == 1


def labelled(data: DataConfig, **settings: object) -> TrainConfig:
    from vlatrain import compose

    words = [f"data.{name}={value}" for name, value in settings.items()]
    return compose("task=classification", "model=tiny_clip", "data=files", f"data.train={data.train}", *words)


@pytest.mark.parametrize(
    "settings",
    [{"eval_fraction": 0.3}, {"shots": 2}, {"balance": "classes"}, {"train_size": 8, "stratify": "false"}],
    ids=str,
)
def test_the_samples_of_a_run_are_the_same(
    settings: dict[str, object], data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = labelled(data, **settings, **({} if "eval_fraction" in settings else {"eval_fraction": 0.4}))
    mapped = load_run(config, ["train", "eval"])
    monkeypatch.setattr(stored, "FEWEST", 10**9)
    disk_cache.remove(disk_cache.folders(stored.FOLDER)[0])
    held = load_run(config, ["train", "eval"])
    assert all(isinstance(samples, Lazy) for samples in mapped.values())
    assert not any(isinstance(samples, Lazy) for samples in held.values())
    assert {split: list(samples) for split, samples in mapped.items()} == held


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "joint"])
def test_a_training_is_bit_for_bit_the_same(
    task: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With processes that load, balanced, and with a kept prefix."""
    from vlatrain import compose, train

    words = ["task=classification", "model=tiny_clip", "data.balance=classes"]
    if task == "joint":
        words = ["task=joint", "model=tiny_blip"]
        source = Path(str(data.train))
        source.write_text(source.read_text().replace('"label"', '"caption"'))
    words += [
        "data=files",
        f"data.train={data.train}",
        "trainer.batch_size=4",
        "trainer.max_steps=12",
        "trainer.cache=memory",
    ]
    words += ["trainer.workers=2", "trainer.log_every=1"]
    losses = []
    for number, fewest in enumerate((10**9, 0, 0)):
        monkeypatch.setattr(stored, "FEWEST", fewest)
        run = train(compose(*words, f"run.dir={tmp_path / str(number)}"))
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        data_of = json.loads((run.folder / "metrics.json").read_text())["data"]
        losses.append(
            [data_of, [{key: line.get(key) for key in ("step", "loss", "grad_norm", "eval/loss")} for line in lines]]
        )
    assert losses[0] == losses[1] == losses[2]
    assert len(disk_cache.folders(stored.FOLDER)) == 1 + (task == "joint")
