"""Fusion against brute force over its sources."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.adapters.alone import adapter_of
from tests.numerics import assert_close
from vlatrain.adapters import Bottleneck, Call, Fusion

WIDTH, DIM = 6, 3
FACTS = {"other_width": 0, "heads": 1, "tower": "vision", "index": 1, "site": "ffn", "layers": 2, "causal": False}


def source(name: str, points: tuple[str, ...] = ("vision.1.ffn",), **options: Any) -> dict[str, Any]:
    return {
        "name": name,
        "design": "bottleneck",
        "options": {"dim": 2, **options},
        "overrides": {},
        "points": list(points),
    }


def fusion(*sources: dict[str, Any], **options: Any) -> Fusion:
    """With random values in everything."""
    unit = adapter_of(Fusion, WIDTH, dim=DIM, sources=sources, **options, **FACTS)
    for parameter in unit.parameters():
        torch.nn.init.normal_(parameter)
    return unit


def by_hand(unit: Fusion, states: Tensor, inputs: Tensor) -> Tensor:
    """Token by token, source by source."""
    attention, out = unit.attention, torch.zeros_like(states)
    for row, token in ((r, t) for r in range(states.shape[0]) for t in range(states.shape[1])):
        x = states[row, token]
        added = []
        for own in unit.sources.values():
            read = inputs if own.reads == "input" else states
            added.append(own(read)[row, token])
        query = attention.query.weight @ x + attention.query.bias
        scores = torch.stack([query @ (attention.key.weight @ z) for z in added])
        weights = scores.exp() / scores.exp().sum()
        mixed = sum(weight * z for weight, z in zip(weights, added, strict=True))
        out[row, token] = mixed if attention.value is None else attention.value.weight @ mixed
    return out


@pytest.mark.parametrize("value", ["identity", "full"])
def test_is_an_attention_over_what_the_sources_add(value: str) -> None:
    unit = fusion(source("a"), source("b", placement="parallel"), source("c", dim=4), value=value)
    states, inputs = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
    assert_close(unit(states, Call(inputs)), by_hand(unit, states, inputs))
    assert unit.reads_inputs
    assert not fusion(source("a"), source("b")).reads_inputs


def test_starts_as_the_mean_of_its_sources() -> None:
    unit = adapter_of(Fusion, WIDTH, dim=DIM, value="full", sources=[source("a"), source("b"), source("c")], **FACTS)
    for parameter in unit.sources.parameters():
        torch.nn.init.normal_(parameter)
    states = torch.randn(2, 3, WIDTH)
    outputs = [own(states) for own in unit.sources.values()]
    assert_close(unit(states), torch.stack(outputs).mean(0))


def test_a_source_without_an_adapter_at_the_point_takes_no_part() -> None:
    unit = fusion(source("a"), source("b", points=("vision.0.ffn",)), source("c"))
    assert list(unit.sources) == ["0", "2"]
    alone = fusion(source("b", points=("vision.0.ffn",)), source("a"))
    states = torch.randn(2, 3, WIDTH)
    assert_close(alone(states), alone.sources["1"](states))
    assert not list(alone.attention.parameters())


@pytest.mark.parametrize(("value", "sources"), [("identity", 2), ("full", 3), ("full", 1)])
def test_parameters_are_as_counted(value: str, sources: int) -> None:
    unit = adapter_of(Fusion, WIDTH, dim=DIM, value=value, sources=[source(str(n)) for n in range(sources)], **FACTS)
    trained = sum(parameter.numel() for parameter in unit.parameters() if parameter.requires_grad)
    assert trained == Fusion.count(WIDTH, DIM, value, sources)
    frozen = sum(parameter.numel() for parameter in unit.parameters() if not parameter.requires_grad)
    assert frozen == sources * Bottleneck.count(WIDTH, 2)


def test_use_is_a_running_mean_in_training_only() -> None:
    unit = fusion(source("a"), source("b"))
    states = torch.randn(2, 3, WIDTH)
    unit.eval()(states)
    assert unit.attention.usage.tolist() == [0.5, 0.5]
    unit.train()(states)
    outputs = torch.stack([own(states) for own in unit.sources.values()], dim=-2)
    mean = unit.attention.weights(states, outputs).mean((0, 1))
    assert_close(unit.attention.usage, 0.95 * torch.tensor([0.5, 0.5]) + 0.05 * mean)


def test_sources_keep_to_eval_mode() -> None:
    unit = fusion(source("a", dropout=0.5), source("b")).train()
    assert unit.attention.training
    assert not any(own.training for own in unit.sources.modules())


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"design": "nothing"}, "unknown design"), ({"design": "prompt"}, "does not adapt the output of a sub-layer")],
)
def test_wrong_sources_are_refused(changed: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        adapter_of(Fusion, WIDTH, dim=DIM, sources=[{**source("a"), **changed}], **FACTS)


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ValueError, match="identity, full"):
        adapter_of(Fusion, WIDTH, dim=DIM, value="some", **FACTS)
