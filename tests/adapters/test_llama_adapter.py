"""LLaMA-Adapter: against the formula, head by head; where it can go."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from tests.conftest import adapter_config, small_config
from vlatrain.adapters.base import Call
from vlatrain.adapters.llama_adapter import LlamaAdapter
from vlatrain.backbones.fit import misfits
from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.config.errors import Unfit

WIDTH, HEADS, DIM = 12, 3, 5


def places() -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The frozen modules of an attention, by themselves and with query, key and value fused."""
    apart = {role: nn.Linear(WIDTH, WIDTH) for role in ("query", "key", "value", "out")}
    fused = nn.Linear(WIDTH, 3 * WIDTH)
    for kind in ("weight", "bias"):
        parts = [getattr(apart[role], kind) for role in ("query", "key", "value")]
        getattr(fused, kind).data = torch.cat(parts).detach()
    return apart, {"qkv": fused, "out": apart["out"]}


def trained() -> LlamaAdapter:
    adapter = LlamaAdapter(WIDTH, DIM, heads=HEADS)
    nn.init.normal_(adapter.gate)
    return adapter


def test_starts_at_zero_and_is_counted() -> None:
    adapter = LlamaAdapter(WIDTH, DIM, heads=HEADS)
    states = torch.randn(2, 4, WIDTH)
    assert torch.equal(adapter(states, Call(frozen=places()[0])), torch.zeros_like(states))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == DIM * WIDTH + HEADS
    assert sum(p.numel() for p in LlamaAdapter(768, 10, heads=12).parameters()) == 7_692


def test_is_the_formula_head_by_head() -> None:
    adapter, (frozen, fused) = trained(), places()
    states = torch.randn(2, 4, WIDTH)
    size = WIDTH // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        query, key, value = (
            linear(x, frozen[role].weight[part], frozen[role].bias[part])
            for role, x in (("query", states), ("key", adapter.prompt), ("value", adapter.prompt))
        )
        share = (query @ key.T / math.sqrt(size)).softmax(dim=-1)  # over the prompt alone
        heads.append(torch.tanh(adapter.gate[head]) * (share @ value))
    expected = torch.cat(heads, dim=-1) @ frozen["out"].weight.T
    torch.testing.assert_close(adapter(states, Call(frozen=frozen)), expected)
    torch.testing.assert_close(adapter(states, Call(frozen=fused)), expected)


def test_projections_without_biases() -> None:
    adapter = trained()
    bare = {role: nn.Linear(WIDTH, WIDTH, bias=False) for role in ("query", "key", "value", "out")}
    fused = {"qkv": nn.Linear(WIDTH, 3 * WIDTH, bias=False), "out": bare["out"]}
    fused["qkv"].weight.data = torch.cat([bare[role].weight for role in ("query", "key", "value")]).detach()
    states = torch.randn(2, 4, WIDTH)
    torch.testing.assert_close(adapter(states, Call(frozen=bare)), adapter(states, Call(frozen=fused)))


def test_a_place_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="attn sites"):
        trained()(torch.randn(1, 2, WIDTH), Call(frozen={"inner": nn.Linear(WIDTH, 8), "out": nn.Linear(8, WIDTH)}))
    with pytest.raises(ValueError, match="do not divide"):
        LlamaAdapter(10, 2, heads=3)


def test_other_sites_are_refused_by_name_before_anything_loads() -> None:
    config = TrainConfig(task=TaskConfig(name="captioning"), model=small_config("blip"))
    config.adapter = adapter_config("llama_adapter")
    assert misfits(config) == []
    config.adapter.points = ["decoder.*.{attn,cross}", "vision.0.ffn"]
    (problem,) = misfits(config)
    assert isinstance(problem, Unfit)
    assert "adapter=llama_adapter: goes to self-attention only, and not to cross, ffn" in problem
