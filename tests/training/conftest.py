"""A small honest task and model: frozen trunk with dropout and batch norm, trained adapters with dropout."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.conftest import adapter_config, small_config
from tests.conftest import make_samples as make_blip_samples
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import OptimConfig, TaskConfig, TrainConfig, TrainerConfig
from vlatrain.data.sample import Sample
from vlatrain.injection.attach import attach
from vlatrain.tasks import Task, build
from vlatrain.tasks.base import Batch, Batches, Evaluation
from vlatrain.training.loop import Loop, Trained
from vlatrain.training.modes import trainable

WIDTH = 8


def captioning_with_adapters() -> Task:
    """Captioning by a small BLIP with bottlenecks in its decoder, in eval mode; the vision tower before them can be kept."""
    settings = TaskConfig(name="captioning", points=["decoder"])
    texts = [text for sample in make_blip_samples() for text in sample.captions]
    backbone = load(small_config("blip"), "captioning", texts=texts)
    attach(backbone.model, adapter_config("bottleneck"), sites(backbone.config, "captioning", settings.points))
    backbone.model.eval()
    return build(settings, backbone)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.dropout, self.up = nn.Linear(WIDTH, 6), nn.Dropout(0.1), nn.Linear(6, WIDTH)
        nn.init.zeros_(self.up.weight)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.up(self.dropout(torch.relu(self.down(states))))


class Layer(nn.Module):
    """A frozen layer with a batch norm and a dropout, and an adapter at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)
        self.adapter = Adapter()
        self.calls = 0

    def forward(self, states: Tensor) -> Tensor:
        self.calls += 1
        return self.adapter(self.dropout(torch.tanh(self.norm(self.linear(states)))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, states: Tensor) -> Tensor:
        states = self.embed(states)
        for layer in self.layers:
            states = layer(states)
        return self.head(states)


def make_model(full: bool = False) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Model()
    for module in (model.embed, *(layer.linear for layer in model.layers)):
        nn.init.eye_(module.weight)  # a trunk that lets everything through
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(full or "adapter" in name)
    return model


class Number:
    """A picture that is only a seed."""

    def __init__(self, seed: int) -> None:
        self.key = str(seed)

    def load(self) -> Any:
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(int(self.key)))


def make_samples(count: int, first: int = 0) -> list[Sample]:
    return [Sample(id=f"s{i}", image=Number(i)) for i in range(first, first + count)]


class SmallTask:
    """Tells positive from negative sums. `collate` draws at random, as one that picks one of several answers does."""

    name, metric = "small", "accuracy"

    def __init__(self, model: nn.Module, noise: float = 0.01) -> None:
        self.config, self.model, self.noise = TaskConfig(name="small"), model, noise
        self.seen: list[list[str]] = []
        self.poison = ""  # id of a sample whose input is not a number

    def collate(self, samples: Sequence[Sample]) -> Batch:
        inputs = torch.stack([sample.image.load() for sample in samples])
        targets = (inputs.sum(dim=1) > 0).long()
        for row, sample in enumerate(samples):
            if sample.id == self.poison:
                inputs[row] = float("nan")
        return {"x": inputs + self.noise * random.random(), "y": targets, "ids": [sample.id for sample in samples]}

    def loss(self, batch: Batch) -> Tensor:
        self.seen.append(batch["ids"])
        return nn.functional.cross_entropy(self.model(batch["x"]).float(), batch["y"])

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        hits: list[bool] = []
        for found in batches(samples, self.collate, lambda batch: self.model(batch["x"]).argmax(1) == batch["y"]):
            hits += found.tolist()
        predictions = [{"id": sample.id, "score": float(hit)} for sample, hit in zip(samples, hits, strict=True)]
        return Evaluation({"accuracy": 100 * sum(hits) / len(hits)}, {}, predictions)


def make_config(**trainer: Any) -> TrainConfig:
    settings = {"batch_size": 4, "epochs": 3, "log_every": 1, "device": "cpu", "eval_loss": False} | trainer
    return TrainConfig(optim=OptimConfig(lr=0.01), trainer=TrainerConfig(**settings), resume="auto")


def make_loop(folder: Path, config: TrainConfig | None = None, full: bool = False, **settings: Any) -> Loop:
    """A loop on fresh copies of everything, as a new process would build it."""
    model = settings.get("model") or make_model(full)
    given: dict[str, Any] = {
        "config": config or make_config(),
        "task": SmallTask(model),
        "model": model,
        "train": make_samples(22),
        "eval": make_samples(10, first=100),
        "folder": folder,
        "save_adapter": lambda where: save_adapter(model, where),
        "group_of": lambda name: "adapter" if "adapter" in name else "trunk",
        "layers": list(model.layers),
    } | settings
    trained = Trained(**{field.name: given.pop(field.name) for field in fields(Trained) if field.name in given})
    return Loop(**given, trained=trained)


def save_adapter(model: nn.Module, folder: Path) -> None:
    save_file(
        {name: parameter.detach().clone() for name, parameter in trainable(model).items()}, folder / "a.safetensors"
    )


def load_adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter" / "a.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def small(tmp_path: Path) -> SimpleNamespace:
    """Builders with the test's own folder."""
    make: Callable[..., Loop] = lambda name="run", **settings: make_loop(tmp_path / name, **settings)  # noqa: E731
    return SimpleNamespace(loop=make, folder=tmp_path)
