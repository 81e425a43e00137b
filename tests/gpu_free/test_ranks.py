"""Processes that differ in clock, memory, disk, data or cards end together: with the same adapter, or with the same message."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from tests.commands import command
from tests.conftest import make_samples
from tests.gpu_free.ranks import collectives, ranks
from tests.training.conftest import captioning_with_adapters, make_config, make_loop, make_model
from vlatrain.config import OptimConfig, TrainConfig, TrainerConfig, UserError
from vlatrain.data.sample import Sample
from vlatrain.injection.attach import group_of
from vlatrain.tasks import Task
from vlatrain.training.display import SILENT
from vlatrain.training.loop import Loop, Trained
from vlatrain.training.precision import own, refuse_shared
from vlatrain.training.prefix_cache import compute as caching
from vlatrain.training.prefix_cache.build import Builder
from vlatrain.training.prefix_cache.compute import cache_prefix
from vlatrain.training.processes import average_gradients, gather

SAMPLES = make_samples()


class Unreadable:
    """An image that one process cannot read."""

    def __init__(self, image: Any) -> None:
        self.image, self.key = image, image.key

    def load(self) -> Any:
        if os.environ.get("BLIND") == os.environ.get("RANK"):
            raise UserError("photo.jpg: truncated")
        return self.image.load()


@pytest.fixture(scope="module")
def task() -> Task:
    built = captioning_with_adapters()
    with torch.no_grad():  # what torch imports with a first pass is imported once, and not in every process
        built.loss(built.collate(SAMPLES[:2]))
    return built


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "kept"))


def train(task: Task, folder: Path, way: str, samples: Sequence[Sample] = SAMPLES) -> list[Any]:
    """What is kept where, and the hash of what was trained."""
    trainer = TrainerConfig(batch_size=2, accumulate=2, epochs=2, cache=way, device="cpu")
    config = TrainConfig(
        task=task.config, model=task.backbone.config, trainer=trainer, optim=OptimConfig(lr=0.01), resume="auto"
    )
    model = task.backbone.model
    loop = Loop(config, task, Trained(model, group_of), samples, [], folder / "run")
    cache = cache_prefix(task.backbone, config, {"train": samples}, {"train": 1000.0}, "fp32", SILENT)
    loop.run()
    return [cache and cache.facts["where"], fingerprint(loop.parameters.values())]


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """A hash of their bits."""
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


@pytest.fixture(scope="module")
def without(task: Task, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of what two processes train without a cache."""
    folder = tmp_path_factory.mktemp("without")
    return ranks(lambda rank: train(task, folder, "off"), folder)[0][1]


def disagree(what: str) -> None:
    """Make this process unlike the other."""
    if what == "clock":
        ticks = iter(range(10**9, 0, -1))
        caching.time = SimpleNamespace(perf_counter=lambda: float(next(ticks)))  # type: ignore[assignment]
    elif what == "memory":
        psutil.virtual_memory = lambda: SimpleNamespace(available=0)  # type: ignore[assignment,misc]
    elif what == "full memory":
        caching.Shared._write = lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"0")  # type: ignore[assignment,method-assign]
    elif what == "disk":
        os.environ["VLATRAIN_CACHE"] = "/proc/nowhere"
    else:
        time.sleep(0.3)


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize(
    ("way", "what"),
    [("auto", "clock"), ("memory", "memory"), ("memory", "full memory"), ("auto", "disk"), ("auto", "start")],
)
def test_processes_that_disagree_train_the_same(
    way: str, what: str, odd: int, task: Task, without: str, tmp_path: Path
) -> None:
    def work(rank: int) -> list[Any]:
        if rank == odd:
            disagree(what)
        return train(task, tmp_path, way)

    one, two = ranks(work, tmp_path)
    assert one == two
    assert one[1] == without
    if odd:
        assert one[0] == ("disk" if way == "auto" else "memory"), "it is the first one's word"


def test_the_memory_of_a_machine_keeps_each_state_once(
    task: Task, without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[Sample] = []
    build = Builder.build

    def counting(self: Any, cache: Any, samples: Sequence[Sample], *rest: Any) -> None:
        computed.extend(samples)
        build(self, cache, samples, *rest)

    monkeypatch.setattr(Builder, "build", counting)

    def work(rank: int) -> list[Any]:
        found = train(task, tmp_path, "memory")
        assert task.backbone.cache.read(SAMPLES, asked=False), "each process can read all"
        assert not any("memfd" in os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
        return [*found, sum(gather(len(computed)))]

    one, two = ranks(work, tmp_path)
    assert one == two == ["memory", without, len(SAMPLES) + 1], "each once, and one for its size"


@pytest.mark.parametrize("way", ["off", "disk", "memory"])
@pytest.mark.parametrize("blind", [0, 1])
def test_an_image_that_one_process_cannot_read_is_told_by_all(
    blind: int, way: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [replace(sample, image=Unreadable(sample.image)) for sample in SAMPLES]
    monkeypatch.setenv("BLIND", str(blind))
    one, two = ranks(lambda rank: train(task, tmp_path, way, samples), tmp_path)
    assert one == two
    assert "photo.jpg: truncated" in one[0]
    assert one[0].endswith("(in process 1)") is bool(blind)


@pytest.mark.parametrize("when", ["before", "in a pass", "saving", "after"])
def test_what_one_process_is_refused_is_told_by_all(when: str, tmp_path: Path) -> None:
    def refused(*_: Any) -> Any:
        raise UserError("no room")

    def work(rank: int) -> int:
        if when == "before" and rank:
            refused()
        loop = make_loop(tmp_path / "run", make_config(max_steps=3, batch_size=2, accumulate=2, save_every=1))
        if when == "in a pass" and rank:
            loop.task.loss = refused  # type: ignore[method-assign]
        if when == "saving" and not rank:
            loop.checkpointer.checkpoints.save = refused  # type: ignore[method-assign]
        loop.run()
        if when == "after" and not rank:
            refused()
        return loop.progress.step

    one, two = ranks(work, tmp_path)
    assert one == two == ["no room (in process 1)" if when in ("before", "in a pass") else "no room"]


@pytest.mark.slow
def test_a_command_in_two_processes_and_what_only_the_first_refuses(tmp_path: Path) -> None:
    sizes = (
        "data.train_size=16",
        "data.eval_size=8",
        "trainer.max_steps=2",
        "trainer.batch_size=4",
        "trainer.threads=1",
    )
    words = ("task=captioning", "trainer.cache=memory", *sizes, f"run.dir={tmp_path / 'run'}")
    assert ranks(lambda _: command(*words), tmp_path) == [0, 0]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["cache"]["where"], metrics["cache"]["computed"], metrics["machine"]["processes"]) == (
        "memory",
        24,
        2,
    )
    assert ranks(lambda _: command(*words), tmp_path) == [2, 2], "the folder holds a run"


def test_frozen_weights_are_not_sent_but_compared(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        model = make_model()
        if rank:
            model.layers[0].adapter.up.bias.data += 1  # drawn otherwise: it is the first one's that is trained
        loop = make_loop(tmp_path / "same", make_config(max_steps=2, eval_every=9), model=model, eval=[])
        loop.run()
        return [parameter.double().sum().item() for parameter in loop.parameters.values()]

    one, two = ranks(work, tmp_path)
    assert one == two
    trained = sum(parameter.numel() for parameter in make_model().parameters() if parameter.requires_grad)
    assert (
        sum(math.prod(shape) for name, *shapes in collectives(tmp_path) for shape in shapes if name == "broadcast_")
        == trained
    )

    def other(rank: int) -> None:
        model = make_model()
        model.head.bias.data += rank
        make_loop(tmp_path / "other", model=model)

    one, two = ranks(other, tmp_path)
    assert one == two
    assert one[0] == "the 2 processes do not train the same; they differ in"
    assert one[1].startswith("frozen weights: ")
    assert len(one) == 2


def test_a_missing_gradient_is_one_of_zeros_unless_it_is_missing_everywhere(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        used, by_one, by_none = parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
        used.grad, by_one.grad = torch.full((2,), 1.0 + rank), torch.full((2,), 4.0) if rank else None
        average_gradients([used, by_none, by_one])
        return [None if one.grad is None else one.grad.tolist() for one in parameters]

    assert ranks(work, tmp_path) == [[[1.5, 1.5], [2.0, 2.0], None]] * 2


def test_a_step_waits_three_times_however_many_passes_it_has(tmp_path: Path) -> None:
    """To go on, for the gradients, for the loss."""
    waits = []
    for steps in (2, 3):
        config = make_config(max_steps=steps, save_every=9, batch_size=2, accumulate=2)
        ranks(
            lambda _, config=config: make_loop(tmp_path / str(config.trainer.max_steps), config, eval=[]).run().steps,
            tmp_path,
        )
        waits.append(len(collectives(tmp_path)))
    assert waits[1] - waits[0] == 3


def test_statistics_that_train_are_the_first_ones(tmp_path: Path) -> None:
    def work(_: int) -> list[float]:
        loop = make_loop(tmp_path / "run", make_config(max_steps=2), full=True, eval=[])
        loop.run()
        return [buffer.double().sum().item() for buffer in loop.moving.values()]

    one, two = ranks(work, tmp_path)
    assert one == two
    assert 2.0 in one, "batches are counted"


@pytest.mark.slow
def test_three_processes_go_on_bit_for_bit(tmp_path: Path) -> None:
    """Sums of three depend on their order."""

    def work(_: int) -> str:
        config = make_config(max_steps=9, save_every=2, keep=9, batch_size=2)
        loop = make_loop(tmp_path / "run", config, eval=[])
        loop.run()
        return fingerprint(loop.parameters.values())

    whole = ranks(work, tmp_path, count=3)
    for step in (6, 8, 9):
        shutil.rmtree(tmp_path / f"run/checkpoints/step_{step}")
    assert ranks(work, tmp_path, count=3) == whole == whole[:1] * 3


@pytest.mark.parametrize(("seen", "local", "card"), [(1, 0, 0), (1, 1, 0), (4, 1, 1), (4, 3, 3)])
def test_a_process_that_sees_one_card_takes_it(
    seen: int, local: int, card: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    assert own(torch.device("cuda")) == torch.device("cuda", card)
    assert own(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("shared", [False, True])
def test_processes_that_share_a_card_are_refused(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def card(_: Any) -> Any:
        return SimpleNamespace(uuid="a" if shared else os.environ["RANK"])

    monkeypatch.setattr(torch.cuda, "get_device_properties", card)
    one, two = ranks(lambda _: refuse_shared(torch.device("cuda", 0)), tmp_path)
    assert one == two
    assert (one and one[0].split(":")[0]) == ("processes 0 and 1 share a GPU" if shared else None)
