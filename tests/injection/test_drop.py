from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from tests.conftest import adapter_config, make_samples, small_config
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.backbones.quantise import layers_of
from vlatrain.config import AdapterConfig, TaskConfig, TrainConfig
from vlatrain.config.errors import Incompatible
from vlatrain.injection.attach import attach
from vlatrain.injection.context import context_of
from vlatrain.injection.drop import drawn, dropping
from vlatrain.tasks import build
from vlatrain.training.modes import checkpoint_gradients

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]


def adapted(config: AdapterConfig, points: list[str]) -> tuple[Backbone, nn.Module]:
    """A small BLIP for questions whose adapters have random values."""
    model_config = small_config("blip")
    backbone = load(model_config, "vqa", texts=TEXTS)
    model = attach(backbone.model, config, sites(model_config, "vqa", points))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.manual_seed(sum(map(ord, name)))
            parameter.data = torch.randn(parameter.shape) * 0.3
    return backbone, model


def loss_of(backbone: Backbone) -> torch.Tensor:
    torch.manual_seed(0)
    task = build(TaskConfig(name="vqa"), backbone)
    return task.loss(task.collate(make_samples()))


@pytest.mark.parametrize("placement", ["after", "parallel"])
@pytest.mark.parametrize(("count", "kept"), [(0, ["*"]), (1, ["*.1-9.*"]), (3, [])])
def test_dropping_equals_deleting_those_adapters(count: int, kept: list[str], placement: str) -> None:
    config = adapter_config("bottleneck", dim=4, options={"placement": placement})
    whole, model = adapted(config, ["*"])
    with torch.no_grad():
        everything = loss_of(whole)
        with dropping(model, count):
            dropped = loss_of(whole)
        wanted = loss_of(adapted(config, kept)[0] if kept else load(small_config("blip"), "vqa", texts=TEXTS))
        assert torch.equal(dropped, wanted)
        assert torch.equal(dropped, everything) == (count == 0)
        assert torch.equal(loss_of(whole), everything), "afterwards nothing is dropped"


def test_the_configuration_says_what_is_dropped() -> None:
    whole, model = adapted(adapter_config("bottleneck", dim=4), ["*"])
    configured, _ = adapted(adapter_config("bottleneck", dim=4, drop_layers=1), ["*"])
    with torch.no_grad(), dropping(model, 1):
        assert torch.equal(loss_of(whole), loss_of(configured))
    assert context_of(configured.model).dropped == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_dropped_gets_no_gradient(checkpointing: bool) -> None:
    backbone, model = adapted(adapter_config("bottleneck", dim=4), ["*"])
    if checkpointing:
        checkpoint_gradients(model, layers_of(backbone.model, backbone.config, backbone.task))
    with dropping(model, 1):
        loss_of(backbone).backward()
    got = {name: parameter.grad is not None for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert got == {name: ".0." not in name for name in got}
    assert set(got.values()) == {False, True}


def test_draws_are_uniform_and_depend_on_seed_and_step_alone() -> None:
    steps = range(6000)
    found = [drawn(3, seed=1, step=step) for step in steps]
    assert all(abs(count - 1500) < 150 for count in Counter(found).values())
    assert sorted(Counter(found)) == [0, 1, 2, 3]
    assert found == [drawn(3, seed=1, step=step) for step in steps]
    other = [drawn(3, seed=2, step=step) for step in steps]
    assert abs(sum(a == b for a, b in zip(found, other, strict=True)) - 1500) < 150, "seeds are independent"


@pytest.mark.parametrize(
    ("method", "changes", "points", "said"),
    [
        ("bottleneck", {"drop_layers": 4}, ["*"], "adapter.drop_layers=4: no tower with adapters has more than 3"),
        ("bottleneck", {"drop_random": 3}, ["*"], "adapter.drop_random=3: some steps would have no adapter"),
        ("bottleneck", {"drop_random": 1}, ["*.0.*"], "at most 0"),
        ("lora", {"drop_layers": 1}, ["*"], "adapter=lora: has no adapters that some layers could go without"),
        ("full", {"drop_layers": 1}, ["*"], "adapter=full: has no adapters"),
        ("none", {"drop_random": 1}, ["*"], "adapter=none: has no adapters"),
    ],
)
def test_what_cannot_be_dropped_is_refused(method: str, changes: dict[str, int], points: list[str], said: str) -> None:
    config = TrainConfig(
        task=TaskConfig(name="vqa", points=points),
        model=small_config("blip"),
        adapter=adapter_config(method, **changes),
    )
    (problem,) = incompatibilities(config)
    assert said in problem
    assert isinstance(problem, Incompatible) == (method != "bottleneck")


def test_a_design_that_needs_all_its_layers_is_refused() -> None:
    config = TrainConfig(
        task=TaskConfig(points=["*"]), model=small_config("blip"), adapter=adapter_config("bottleneck")
    )
    config.adapter.drop_layers = 2
    assert incompatibilities(config) == []
    config.adapter.needs = ["layers"]
    (problem,) = incompatibilities(config)
    assert "adapter=bottleneck" in problem
    assert isinstance(problem, Incompatible)
