from __future__ import annotations

import pytest
import torch
from torch import nn

from vlatrain.config import AdapterConfig, ModelConfig, OptimConfig, TaskConfig, TrainConfig, UserError
from vlatrain.config.optim import Group
from vlatrain.training.optimizer import (
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    rate,
    set_rates,
    with_new_head,
)


def parameters() -> dict[str, nn.Parameter]:
    return {
        "adapter.weight": nn.Parameter(torch.ones(2, 2)),
        "adapter.bias": nn.Parameter(torch.ones(2)),
        "head.weight": nn.Parameter(torch.ones(2, 2)),
        "scale": nn.Parameter(torch.ones(())),
    }


def group_of(name: str) -> Group:
    return "adapter" if name.startswith("adapter") else "head" if name.startswith("head") else "trunk"


def test_groups_have_their_rate_and_vectors_no_decay() -> None:
    named = parameters()
    optimizer = make_optimizer(named, OptimConfig(lr=0.1, weight_decay=0.5, groups={"head": 0.01}), group_of)
    found = {
        name: (group["name"], group["lr"], group["weight_decay"])
        for name, parameter in named.items()
        for group in optimizer.param_groups
        if any(parameter is other for other in group["params"])
    }
    assert found == {
        "adapter.weight": ("adapter", 0.1, 0.5),
        "adapter.bias": ("adapter", 0.1, 0.0),
        "head.weight": ("head", 0.01, 0.5),
        "scale": ("trunk", 0.1, 0.0),
    }
    assert set_rates(optimizer, 0.5) == {"adapter": 0.05, "head": 0.005, "trunk": 0.05}
    assert set_rates(optimizer, 0.5)["head"] == 0.005, "shares are of the peak, not of the last rate"


@pytest.mark.parametrize(
    ("method", "slower", "groups", "expected"),
    [
        ("bottleneck", 1.0, {}, {}),
        ("bottleneck", 0.3, {}, {"head": 0.02}),
        ("bottleneck", 0.3, {"head": 0.5, "adapter": 0.1}, {"head": 0.5, "adapter": 0.1}),
        ("full", 1.0, {}, {"head": 0.02}),
        ("full", 1.0, {"trunk": 0.1}, {"head": 0.02, "trunk": 0.1}),
    ],
)
def test_a_new_head_has_the_rate_of_what_is_new(
    method: str, slower: float, groups: dict[str, float], expected: dict[str, float]
) -> None:
    config = TrainConfig(
        task=TaskConfig("grounding", rate=slower),
        model=ModelConfig(adapter_lr=0.02),
        adapter=AdapterConfig(name=method),
        optim=OptimConfig(lr=0.006, groups=groups),
    )
    assert with_new_head(config, parameters(), group_of).groups == expected
    assert with_new_head(config, ["adapter.weight"], group_of).groups == groups, "there is none"


def test_a_rate_for_a_group_that_is_not_trained_is_refused() -> None:
    named = {name: parameter for name, parameter in parameters().items() if group_of(name) != "head"}
    with pytest.raises(UserError, match=r"optim\.groups\.head.*adapter, trunk"):
        make_optimizer(named, OptimConfig(groups={"head": 1.0}), group_of)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [1 / 3, 2 / 3, 1, 1]),
        ("constant", 0.5, [1 / 3, 2 / 3, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 2, [1 / 3, 2 / 3, 1, 0.5]),
        ("cosine", 0, [1, 0.8536, 0.5, 0.1464]),
        ("linear", 9, [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_schedules(schedule: str, warmup: float, expected: list[float]) -> None:
    config = OptimConfig(schedule=schedule, warmup=warmup)
    assert [rate(step, 4, config) for step in range(4)] == pytest.approx(expected, abs=1e-4)


def test_the_state_comes_back_by_name() -> None:
    def step(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], size: float) -> None:
        for parameter in named.values():
            parameter.grad = torch.full_like(parameter, size)
        optimizer.step()

    one = parameters()
    first = make_optimizer(one, OptimConfig(), group_of)
    step(first, one, 1.0)
    other = parameters()
    for name, parameter in other.items():
        parameter.data.copy_(one[name].data)
    second = make_optimizer(other, OptimConfig(), group_of)
    load_optimizer(second, other, {name: tensor.clone() for name, tensor in optimizer_tensors(first, one).items()})
    step(first, one, -0.3)
    step(second, other, -0.3)
    assert all(torch.equal(one[name], other[name]) for name in one)
