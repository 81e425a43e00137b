"""Faults that no room has to itself, each done to a real run: the small one of the training's tests, or a tiny one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from tests.commands import command, tiny_run
from tests.conftest import small_config
from tests.disk import FORK
from tests.training.conftest import load_adapter, make_config, make_loop, same
from tests.training.test_interruptions import agree, finish, start, wait
from vlatrain.backbones.loading import load
from vlatrain.backbones.pretrained import ASSETS
from vlatrain.config import UserError
from vlatrain.reporting.history import JsonLines
from vlatrain.runs import saved_config
from vlatrain.tasks import looks
from vlatrain.training.batches import GRACE, batches_by
from vlatrain.training.setup import keep_processor


def test_one_seed_is_one_adapter(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_loop(tmp_path / name, make_config(epochs=2)).run()
    assert same(load_adapter(tmp_path / "one"), load_adapter(tmp_path / "two"))


def test_workers_change_no_bit(tmp_path: Path) -> None:
    for workers in (0, 2, 4):
        make_loop(tmp_path / str(workers), make_config(epochs=1, workers=workers)).run()
    assert same(load_adapter(tmp_path / "0"), load_adapter(tmp_path / "2"))
    assert same(load_adapter(tmp_path / "0"), load_adapter(tmp_path / "4"))


def dying_at_rename(folder: Path, number: int, after: bool) -> Any:
    """A session of a run that is killed at its n-th rename, before it or just after."""
    renames, count = (os.rename, os.replace), [0]

    def dying(rename: Callable[..., None]) -> Callable[..., None]:
        def counted(*paths: Any) -> None:
            count[0] += 1
            if count[0] == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

        return counted

    os.rename, os.replace = map(dying, renames)  # type: ignore[assignment]
    try:
        return start(folder, {"save_every": 6})
    finally:
        os.rename, os.replace = renames  # type: ignore[assignment]


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_kill_at_each_rename(after: bool, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(start(whole, {"save_every": 6})) == 0
    kills = 0
    while (status := finish(dying_at_rename(killed, kills + 1, after))) == -signal.SIGKILL:
        kills += 1
    assert status == 0
    assert kills >= 4
    agree(whole, killed)


class Executed:
    """Leaves a file where it is unpickled by something that believes it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that is finished."""
    return tiny_run(tmp_path_factory.mktemp("run") / "run", "vqa", "trainer.save_every=1")


#: As the run of this module was trained.
FEW_STEPS = (
    "data.train_size=24",
    "data.eval_size=10",
    "trainer.max_steps=3",
    "trainer.batch_size=8",
    "trainer.threads=1",
)
PLACES = {  # the file that becomes a pickle, or is replaced by one, and what then reads it
    "a checkpoint": ("checkpoints/step_3/trainable.safetensors", "checkpoints/step_3/trainable.safetensors"),
    "an adapter": ("adapter/adapter_model.safetensors", "adapter/adapter_model.safetensors"),
    "an adapter's .bin": ("adapter/adapter_model.safetensors", "adapter/adapter_model.bin"),
    "a backbone": ("model.safetensors", "model.safetensors"),
    "a backbone's .bin": ("model.safetensors", "pytorch_model.bin"),
}


@pytest.mark.parametrize(
    "place",
    ["a checkpoint", *(pytest.param(place, marks=pytest.mark.slow) for place in [*PLACES][1:-1]), "a backbone's .bin"],
)
def test_a_pickle_is_not_executed(place: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = PLACES[place]
    folder, mark = tmp_path / "folder", tmp_path / "executed"
    of_backbone = "backbone" in place
    shutil.copytree(ASSETS / "tiny_blip" if of_backbone else run, folder)
    (folder / old).unlink()
    with (folder / new).open("wb") as file:
        (torch.save if new.endswith("bin") else pickle.dump)({"weight": Executed(mark)}, file)
    words = ["eval", f"run={run if of_backbone else folder}", f"output={tmp_path / 'scored'}"]
    if "checkpoint" in place:
        words = [*FEW_STEPS, "task=vqa", "trainer.save_every=1", f"run.dir={folder}", "resume=auto"]
    status = command(*words, *([f"model.checkpoint={folder}"] if of_backbone else []))
    assert status == (0 if "checkpoint" in place else 2)  # from the checkpoint before
    assert not mark.exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_configuration_that_is_restored_is_the_one_that_was_there(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    before = (folder / "config.yaml").read_text()
    (folder / "config.yaml").unlink()
    saved_config(folder)
    assert (folder / "config.yaml").read_text() == before


def test_a_changed_option_is_refused_with_the_difference(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert command(*FEW_STEPS, "trainer.save_every=1", f"run.dir={run}", "resume=auto", "optim.lr=0.5") == 2
    assert "optim.lr: 0.003 there, 0.5 now" in capsys.readouterr().err
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_signal_in_a_prediction(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    words = (
        "predict",
        f"run={run}",
        f"image={tmp_path / 'a.png'}",
        "question=is it red?",
        f"output={tmp_path / 'answers.jsonl'}",
    )

    def stopped() -> None:
        from vlatrain.verbs.predict import Predictor

        ask = Predictor.ask

        def ask_and_stop(predictor: Any, *given: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return ask(predictor, *given)

        Predictor.ask = ask_and_stop  # type: ignore[method-assign]
        os._exit(command(*words))

    process = FORK.Process(target=stopped)
    process.start()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert not (tmp_path / "answers.jsonl").exists()
    assert command(*words) == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    whole, killed, loading = tmp_path / "whole", tmp_path / "killed", {"workers": 2}
    assert finish(start(whole, loading)) == 0
    process = start(killed, loading, loss_seconds=0.01)
    assert wait(
        process, lambda: len(psutil.Process(process.pid).children()) == 2 and (killed / "metrics.jsonl").exists()
    )
    psutil.Process(process.pid).children()[0].kill()
    assert finish(process) not in (0, -signal.SIGKILL), "it neither goes on with less, nor hangs"
    assert finish(start(killed, loading)) == 0
    agree(whole, killed)


def test_a_killed_worker_is_one_line_and_the_others_are_not_waited_for() -> None:
    def collate(numbers: Any) -> Any:
        if numbers[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return numbers

    began = time.monotonic()
    with pytest.raises(UserError, match=r"trainer\.workers=2: a process that loads images was killed .* set fewer"):
        list(batches_by([range(2), range(2, 4)], range(4), collate, 2, "cpu"))
    assert not multiprocessing.active_children()
    assert time.monotonic() - began < GRACE


def test_a_bit_of_what_is_kept_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(looks, "WORTH_KEEPING", 1)
    calls: list[Any] = []

    def look(texts: Any) -> Any:
        calls.append(texts)
        return (looks.Seen(len(text), 1, False) for text in texts)

    backbone = SimpleNamespace(tokenises="so", looked_at={})

    def seen() -> list[looks.Seen]:
        backbone.looked_at.clear()
        return looks.Look(backbone, "read", look)(["a", "bcd"])  # type: ignore[arg-type]

    assert [one.tokens for one in seen()] == [1, 3]
    assert seen()
    assert len(calls) == 1
    (file,) = looks.counts()
    data = bytearray(file.read_bytes())
    data[-4 * len(looks.Seen._fields)] ^= 4
    file.write_bytes(data)
    assert [one.tokens for one in seen()] == [1, 3]
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json"])
def test_a_processor_that_has_changed_is_refused(name: str, tmp_path: Path) -> None:
    setup = SimpleNamespace(backbone=load(small_config("blip"), "vqa", texts=["is it red?"]))
    keep_processor(setup, tmp_path)  # type: ignore[arg-type]
    load(small_config("blip"), "vqa", run=tmp_path)
    file = tmp_path / "processor" / name
    file.write_text(file.read_text().replace("0", "1", 1))
    with pytest.raises(UserError, match=rf"processor: {name} has changed since it was written"):
        load(small_config("blip"), "vqa", run=tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=rf"processor: {name} is missing"):
        load(small_config("blip"), "vqa", run=tmp_path)


@pytest.mark.parametrize(
    "change", [lambda text: text[text.index("\n") + 1 :], lambda text: text.replace("0", "1", 1), None]
)
def test_records_that_are_lost_or_have_changed_are_told(
    change: Callable[[str], str] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def session(steps: int) -> None:
        make_loop(
            tmp_path / "run", make_config(max_steps=steps), sinks=[JsonLines(tmp_path / "run" / "metrics.jsonl")]
        ).run()

    (tmp_path / "run").mkdir()
    session(4)
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_text(change(file.read_text()) if change else file.read_text())
    session(5)
    assert ("some of what was recorded up to step 4 is lost, or has changed" in caplog.text) == bool(change)
