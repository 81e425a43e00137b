"""The type in which states are kept in mixed precision: the values are those without a cache, and no byte is for nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from tests import fake_cuda
from tests.conftest import adapter_config, make_samples
from tests.gpu_free.families import config_of, set_up, task_of
from vlatrain.backbones.describe import sites
from vlatrain.backbones.prefix import Enough, PrefixReplay
from vlatrain.config import TrainConfig, TrainerConfig
from vlatrain.injection.attach import attach
from vlatrain.tasks import Task
from vlatrain.tasks.base import move
from vlatrain.training.batches import SharedBatches
from vlatrain.training.display import SILENT
from vlatrain.training.modes import cast_trunk
from vlatrain.training.precision import autocast
from vlatrain.training.prefix_cache import stored_type
from vlatrain.training.prefix_cache.compute import PrefixCache, cache_prefix
from vlatrain.training.prefix_cache.frontier import frontiers, needed

SAMPLES = make_samples()
BF16, FP32 = torch.bfloat16, torch.float32
# model, task and points: the type on a GPU, where the trunk is bf16, and on a CPU, where it is fp32
KINDS: list[tuple[str, str, str, torch.dtype, torch.dtype]] = [
    ("clip", "retrieval", "vision.last1.*", FP32, FP32),  # a norm behind its embeddings makes its residuals fp32
    ("siglip", "retrieval", "vision.last1.*", BF16, FP32),
    ("blip", "captioning", "decoder", BF16, FP32),
    (
        "blip",
        "vqa",
        "decoder",
        BF16,
        BF16,
    ),  # the question's states, which leave a norm in fp32, and are cast by all readers
    ("blip", "vqa", "fusion.last1.*", FP32, FP32),
    ("blip2_opt", "vqa", "decoder", BF16, FP32),
    ("clip+gpt2", "captioning", "decoder", FP32, FP32),  # LLaVA's shape: CLIP, a projector, a language model
]


def made(name: str, asked: str, points: str) -> Task:
    backbone, settings = set_up(config_of(name), asked)
    ends = [points] if points != "decoder" else [f"{backbone.config.tasks[asked].output_towers[0]}.*"]
    attach(backbone.model, adapter_config("bottleneck", dim=2), sites(backbone.config, asked, ends))
    backbone.model.eval()
    return task_of(backbone, settings)


def keep(task: Task) -> PrefixCache:
    trainer = TrainerConfig(cache="memory", batch_size=len(SAMPLES))
    config = TrainConfig(task=task.config, model=task.backbone.config, trainer=trainer)
    found = cache_prefix(task.backbone, config, {"train": SAMPLES}, {"train": 3.0}, "bf16", SILENT)
    assert found is not None
    return found


def loss(task: Task) -> torch.Tensor:
    torch.manual_seed(0)  # matching draws its negatives
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
        return task.loss(task.collate(SAMPLES))


@pytest.mark.parametrize(("name", "asked", "points", "_gpu", "expected"), KINDS)
def test_losses_are_those_without_a_cache(
    name: str, asked: str, points: str, _gpu: torch.dtype, expected: torch.dtype
) -> None:
    task = made(name, asked, points)
    without = loss(task)
    cache = keep(task)
    states = cache.read(SAMPLES, asked=asked == "vqa")
    *_, last = states.values()
    assert last.dtype == expected
    numbers = {
        cache.keys(tower, one)[0]: cache.stores[tower].get(cache.keys(tower, one)[0])
        for tower in states
        for one in SAMPLES
    }
    assert cache.facts["bytes"] == sum(
        state.numel() * state.element_size() for state in numbers.values() if state is not None
    )
    assert torch.equal(loss(task), without)


def test_answers_are_those_without_a_cache() -> None:
    task = made("blip", "vqa", "decoder")
    found = []
    for kept in (False, True):
        cache = keep(task) if kept else None
        with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
            found.append(task.evaluate(SAMPLES, SharedBatches("cpu", len(SAMPLES))))
    assert cache is not None
    assert cache.read(SAMPLES, asked=True)["fusion"].dtype == BF16
    assert found[0].predictions == found[1].predictions


@pytest.mark.parametrize(("name", "asked", "points", "expected", "_cpu"), KINDS)
def test_types_on_a_gpu(name: str, asked: str, points: str, expected: torch.dtype, _cpu: torch.dtype) -> None:
    if reason := fake_cuda.unavailable():
        pytest.skip(reason)
    task = made(name, asked, points)
    backbone = task.backbone
    found = frontiers(backbone.model, backbone.config, asked)
    towers = needed(found)
    keeping = PrefixReplay({tower: found[tower].boundary for tower in towers}, {})  # type: ignore[misc]
    cast_trunk(backbone.model, BF16)
    batch, counts = task.collate(SAMPLES[:2]), fake_cuda.Counts()
    with fake_cuda.claimed() as mode, fake_cuda.Calls(counts):
        fake_cuda.to_device(backbone.model, mode)
        low = stored_type.read_low(task.config, backbone, {tower: found[tower] for tower in towers}, "bf16")
        backbone.prefix_replay = keeping
        with (
            torch.no_grad(),
            autocast(fake_cuda.DEVICE, "bf16"),
            keeping.recording(towers) as recorded,
            suppress(Enough),
        ):
            backbone.run_frozen_towers(move(batch["inputs"], fake_cuda.DEVICE))
    last = towers[-1]
    assert recorded[last].states.dtype == (FP32 if last in low else expected)
    assert (BF16 if last in low else recorded[last].states.dtype) == expected


class Reader(nn.Module):
    """What may read a tower's states."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear, self.norm = kind, nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, states: torch.Tensor) -> Any:
        if self.kind == "a norm too":
            return self.linear(states) + self.norm(states)
        if self.kind == "dropout":
            return self.linear(nn.functional.dropout(states, 0.1))
        if self.kind == "in place":
            return self.linear(states[:, 1:].add_(1))
        if self.kind == "none":
            return None
        rows = states[:, :2].index_select(0, torch.tensor([1, 0, 0]))
        return self.linear(torch.cat([rows, rows]).transpose(0, 1))


@pytest.mark.parametrize(
    ("kind", "low"), [("rows", True), ("a norm too", False), ("dropout", False), ("in place", False), ("none", False)]
)
def test_what_is_cast_by_all_its_readers(kind: str, low: bool) -> None:
    readers, model = stored_type._Readers(BF16), Reader(kind)
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"), readers:
        states = torch.randn(2, 3, 8)
        readers.enter("text", model, (), (states,))
        model(states)
    assert (readers.cast - readers.as_they_are == {"text"}) is low
