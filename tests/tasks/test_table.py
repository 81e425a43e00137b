"""Every backbone on every task it serves with three methods, tiny with random weights: learns, saves, loads, predicts, inspects.

A new backbone is in the table as soon as it has a YAML in conf/model and small settings in tests/backbones/small.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.backbones.composites import small
from tests.backbones.small import SETTINGS
from tests.conftest import CONF, adapter_config, make_samples, model_config, small_config
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites, stacks
from vlatrain.backbones.loading import load
from vlatrain.config import DecodeConfig, ModelConfig, TaskConfig, TrainConfig
from vlatrain.config.joint import JOINT
from vlatrain.config.spec import described as config_spec
from vlatrain.injection.attach import attach, restore, save
from vlatrain.tasks import Task, build, prepare
from vlatrain.training.batches import SharedBatches
from vlatrain.verbs.inspect import count

METHODS = ("bottleneck", "cross_modal", "lora")
COMPOSITES = [(v, w) for v in ("clip", "dinov2", "siglip") for w in ("gpt2", "llama", "bart", "t5")]
SHIPPED = ("tiny_blip", "tiny_clip", "tiny_composite", "tiny_vit")  # the same kinds, tested with their weights
NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in (*SHIPPED, "composite"))
QUICK = {
    ("blip", "vqa", "bottleneck"), ("siglip", "retrieval", "lora"), ("vilt", "vqa", "bottleneck"),
    ("llava", "instruct", "bottleneck"), ("qwen3_vl", "vqa", "lora"), ("clip", "classification", "bottleneck"),
    ("composite clip+gpt2", "captioning", "cross_modal"),
}  # fmt: skip
SAMPLES = [
    replace(sample, captions=sample.captions[:1], boxes=((0.0, 0.0, 0.25 + 0.25 * sample.image.mark, 0.5),))  # type: ignore[attr-defined]
    for sample in make_samples()
]
TEXTS = [
    text for s in SAMPLES for text in (s.question, *s.answers, *s.captions, s.label, *(t.user + " " + t.reply for t in s.turns))
]  # fmt: skip
STEPS = 60
LEARNS = {  # to what share of its start the loss must fall, where it is not 0.6
    # the gate starts closed, and only hard negatives open it
    ("cross_modal", "retrieval"): 0.95,
    # the first token of a BERT with random weights hardly sees its text, which adapters behind its attention cannot mend; that they
    # learn in a trained one is in test_tasks.py
    ("blip", "retrieval"): 0.99,
}
VOCABULARY = {390, 400, 1700}  # of the small settings


def config_of(name: str) -> ModelConfig:
    """A small backbone of a name of the table."""
    if name.startswith("composite "):
        vision, language = name.removeprefix("composite ").split("+")
        return small(vision, language)
    return small_config(name)


def cells() -> Iterator[object]:
    """Backbone, task and method; those that are not quick are marked."""
    composite = small("clip", "gpt2").tasks  # whatever their submodels
    for name in [*NAMES, *(f"composite {v}+{w}" for v, w in COMPOSITES)]:
        for task in composite if name.startswith("composite ") else model_config(name).tasks:
            if (name, task) == ("siglip2_naflex", "grounding"):  # which has no square grid of patches
                continue
            for method in METHODS if task != JOINT else ():
                cell = (name, task, method)
                yield pytest.param(*cell, marks=[] if cell in QUICK else pytest.mark.slow, id="-".join(cell))


def settings(model: ModelConfig, task: str, method: str) -> TrainConfig:
    """The configuration of a cell: adapters everywhere, cross-modal ones wherever there is something to read."""
    served = model.tasks[task]
    points = list(served.other_modality) if method == "cross_modal" else ["*"]
    dim = {"dim": 8} if method == "lora" else {"dim": 16, "scaling": 1.0}
    return TrainConfig(
        task=TaskConfig(
            name=task, points=points, decode=DecodeConfig(max_new_tokens=12), rerank=2, matching=True, templates=["{}"]
        ),
        model=model,
        adapter=adapter_config(method, heads=task == "retrieval" and bool(served.heads), **dim),
    )


def made(config: TrainConfig) -> Backbone:
    """The frozen backbone; its weights are louder than usual, else one of width 32 answers the same to everything. Its words most
    of all, as a frozen head of small ones can be sure of nothing."""
    backbone = load(config.model, config.task.name, texts=TEXTS)
    prepare(config.task, backbone, SAMPLES)
    words = {
        id(module.weight)
        for module in backbone.model.modules()
        if isinstance(module, (nn.Embedding, nn.Linear)) and VOCABULARY.intersection(module.weight.shape)
    }
    for parameter in backbone.model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(1 / parameter.std() if id(parameter) in words else 3)
    return backbone


def losses(task: Task, steps: int) -> list[float]:
    trained = [p for p in task.backbone.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    batch, found = task.collate(SAMPLES[:4]), []
    for _ in range(steps):
        torch.manual_seed(0)  # of the hard negatives
        loss = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(("name", "task", "method"), cells())
def test_learns_saves_loads_predicts_inspects(name: str, task: str, method: str, tmp_path: Path) -> None:
    config = settings(config_of(name), task, method)
    if method == "cross_modal" and (not config.task.points or task == "classification"):
        config.task.points = config.task.points or ["*"]
        told = incompatibilities(config)
        if told:
            assert "gets no states of another modality" in told[0] or "each made without the other" in told[0]
            return
    assert not incompatibilities(config)
    where = sites(config.model, task, config.points)
    backbone = made(config)
    model = attach(backbone.model, config.adapter, where)
    work = build(config.task, backbone, SAMPLES)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    course = losses(work, STEPS)
    assert course[-1] < LEARNS.get((name, task), LEARNS.get((method, task), 0.6)) * course[0], course[:: STEPS // 6]

    model.eval()
    with torch.no_grad():
        first = work.evaluate(SAMPLES[:4], SharedBatches("cpu", 2))
    save(model, tmp_path / "adapter")
    again = made(config)
    restore(again.model, config.adapter, tmp_path / "adapter").eval()
    with torch.no_grad():
        second = build(config.task, again, SAMPLES).evaluate(SAMPLES[:4], SharedBatches("cpu", 2))
    whole = np.ones(sum(first.strata))
    assert {name: statistic(whole) for name, statistic in first.statistics.items()} == pytest.approx(
        {name: first.metrics[name] for name in first.statistics}
    ), "what intervals and groups are made of"
    metric = config_spec(task)["metric"]
    assert metric in first.statistics
    known = work.yardsticks(SAMPLES[:4], json.loads(json.dumps(work.constants(SAMPLES))))
    assert any(metric in baseline.metrics for baseline in known.baselines.values())
    told = [[(record["id"], record["prediction"]) for record in found.predictions] for found in (first, second)]
    assert told[0] == told[1]
    assert first.metrics == pytest.approx(second.metrics, rel=1e-4)
    found = count(replace(config, task=work.config))
    assert sum(found.trainable.values()) == trainable


@pytest.mark.parametrize("name", [*NAMES, "composite clip+gpt2", "composite dinov2+t5"])
@pytest.mark.slow
def test_inspects_full_size_in_seconds(name: str) -> None:
    """No weights and no network, the activations of a batch included."""
    from tests.backbones.composites import described

    parts = name.removeprefix("composite ").split("+")
    model = described(*parts) if len(parts) == 2 else model_config(name)
    task = next(iter(model.tasks))
    started = time.process_time()
    config = TrainConfig(
        task=TaskConfig(name=task, points=[f"{next(reversed(stacks(model, task)))}.last4.*"]),
        model=model,
        adapter=adapter_config("bottleneck", dim=64),
    )
    config.trainer.batch_size = 1
    found = count(config)
    assert 0 < found.trainable["adapter"] < 0.05 * found.total
    assert found.memory.training > 0
    assert found.memory.evaluation > 0
    assert time.process_time() - started < 60


def test_small_settings_are_of_backbones() -> None:
    assert set(SETTINGS) >= set(NAMES)
