"""LLaMA-Adapter: against the formula, head by head; where it can go; in every kind of attention that backbones have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from tests.adapters.alone import adapter_of
from tests.conftest import adapter_config, small_config
from tests.numerics import assert_close
from vlatrain.adapters.base import Call
from vlatrain.adapters.llama_adapter import LlamaAdapter
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.config.errors import Incompatible

WIDTH, HEADS, GROUPS, SIZE, DIM = 10, 6, 2, 4, 5  # heads that fill no width; three share a key-value head


def places(bias: bool = True, kv_heads: int = GROUPS) -> dict[str, nn.Module]:
    """The frozen modules of an attention."""
    outputs = {"query": HEADS, "key": kv_heads, "value": kv_heads}
    apart = {role: nn.Linear(WIDTH, heads * SIZE, bias) for role, heads in outputs.items()}
    return {**apart, "out": nn.Linear(HEADS * SIZE, WIDTH, bias)}


def fused(apart: dict[str, nn.Module], kind: type[nn.Module]) -> dict[str, nn.Module]:
    """The same with query, key and value in one, as a linear layer or as GPT-2's, whose weights are the other way round."""
    made: dict[str, nn.Module] = {}
    for role, parts in (("qkv", ("query", "key", "value")), ("out", ("out",))):
        weight = torch.cat([apart[part].weight for part in parts]).detach()
        made[role] = kind(*(weight.shape if kind is Conv1D else weight.T.shape))
        made[role].weight.data = weight.T.contiguous() if kind is Conv1D else weight
        made[role].bias.data = torch.cat([apart[part].bias for part in parts]).detach()
    return made


def trained() -> LlamaAdapter:
    adapter = adapter_of(LlamaAdapter, WIDTH, DIM, heads=HEADS)
    nn.init.normal_(adapter.gate)
    return adapter


def written_out(adapter: LlamaAdapter, frozen: dict[str, nn.Module], states: Tensor) -> Tensor:
    """The formula, head by head."""
    heads = []
    for head in range(HEADS):
        found = {}
        for role, x in (("query", states), ("key", adapter.prompt), ("value", adapter.prompt)):
            layer = frozen[role]
            own = head * (layer.out_features // SIZE) // HEADS  # the key-value head of its group
            part = slice(own * SIZE, (own + 1) * SIZE)
            found[role] = linear(x, layer.weight[part], None if layer.bias is None else layer.bias[part])
        share = (found["query"] @ found["key"].T / math.sqrt(SIZE)).softmax(dim=-1)  # over the prompt alone
        heads.append(torch.tanh(adapter.gate[head]) * (share @ found["value"]))
    return torch.cat(heads, dim=-1) @ frozen["out"].weight.T


def test_starts_at_zero_and_is_counted() -> None:
    adapter = adapter_of(LlamaAdapter, WIDTH, DIM, heads=HEADS)
    states = torch.randn(2, 4, WIDTH)
    assert torch.equal(adapter(states, Call(frozen=places())), torch.zeros_like(states))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == DIM * WIDTH + HEADS
    assert sum(p.numel() for p in adapter_of(LlamaAdapter, 768, 10, heads=12).parameters()) == 7_692


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kv_heads", [HEADS, GROUPS, 1])
def test_is_the_formula_head_by_head(kv_heads: int, bias: bool) -> None:
    adapter, frozen, states = trained(), places(bias, kv_heads), torch.randn(2, 4, WIDTH)
    assert_close(adapter(states, Call(frozen=frozen)), written_out(adapter, frozen, states))


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_query_key_and_value_may_be_fused(kind: type[nn.Module]) -> None:
    adapter, apart, states = trained(), places(kv_heads=HEADS), torch.randn(2, 4, WIDTH)
    found = adapter(states, Call(frozen=fused(apart, kind)))
    assert_close(found, written_out(adapter, apart, states))


def test_starts_at_zero_in_half_precision_whatever_the_bias() -> None:
    """What a frozen layer adds is taken off again as it was added."""
    frozen, states = places(), torch.randn(2, 4, WIDTH)
    nn.init.normal_(frozen["out"].bias, std=3.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert not adapter_of(LlamaAdapter, WIDTH, DIM, heads=HEADS)(states, Call(frozen=frozen)).any()


def test_a_place_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="attn sites"):
        trained()(torch.randn(1, 2, WIDTH), Call(frozen={"inner": nn.Linear(WIDTH, 8), "out": nn.Linear(8, WIDTH)}))
    with pytest.raises(ValueError, match="no attention heads"):
        adapter_of(LlamaAdapter, 10, 2, heads=0)


def test_other_sites_are_refused_by_name_before_anything_loads() -> None:
    config = TrainConfig(task=TaskConfig(name="captioning"), model=small_config("blip"))
    config.adapter = adapter_config("llama_adapter")
    assert incompatibilities(config) == []
    config.adapter.points = ["decoder.*.{attn,cross}", "vision.0.ffn"]
    (problem,) = incompatibilities(config)
    assert isinstance(problem, Incompatible)
    assert "adapter=llama_adapter: goes to self-attention only, and not to cross, ffn" in problem
