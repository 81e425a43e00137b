"""HyperFormer: generated weights are what a plain adapter would have, the start, the counts of the paper that published them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.adapters.alone import adapter_of
from tests.numerics import assert_close
from vlatrain.adapters.hyperformer import Hyperformer


def parameters(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def randomised(adapter: Hyperformer) -> Hyperformer:
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    return adapter


def test_starts_at_zero_with_a_plain_adapters_spread() -> None:
    adapter = adapter_of(Hyperformer, 96, 16)
    states = torch.randn(2, 3, 96)
    assert torch.equal(adapter(states), torch.zeros_like(states))
    down = adapter.generator(adapter.code())[0].detach()
    assert float(down.std()) == pytest.approx((3 * 96) ** -0.5, rel=0.1)


def test_is_an_adapter_of_the_generated_weights() -> None:
    adapter = randomised(
        adapter_of(Hyperformer, 6, 4, activation="relu", scaling=0.5, task_embedding=5, hidden=7, projected=3)
    )
    first, _, last, norm = adapter.network
    codes = torch.cat([adapter.task.weight, adapter.layer.weight, adapter.site.weight])
    code = norm(last(torch.relu(first(codes))))
    made = adapter.generator
    down = (made.down.weight @ code + made.down.bias).reshape(4, 6)
    up = (made.up.weight @ code + made.up.bias).reshape(6, 4)
    down_bias, up_bias = (part.weight @ code + part.bias for part in (made.down_bias, made.up_bias))
    states = torch.randn(5, 6)
    expected = 0.5 * (torch.relu(states @ down.T + down_bias) @ up.T + up_bias)
    assert_close(adapter(states), expected)


def test_another_embedding_gives_another_adapter() -> None:
    adapter, states = randomised(adapter_of(Hyperformer, 6, 4)), torch.randn(5, 6)
    before = adapter(states)
    for part in (adapter.task, adapter.layer, adapter.site):
        kept = part.weight.detach().clone()
        nn.init.normal_(part.weight)
        assert not torch.allclose(adapter(states), before)
        part.weight.data.copy_(kept)
    assert_close(adapter(states), before)


def test_the_published_recipe_on_bart() -> None:
    """VL-Adapter's: 4 tasks, an encoder of two sites and a decoder of three, six layers each: 6,947,088 of its 8,579,088,
    the others being the trunk's norms (49,152) and the visual projection (1,582,848)."""
    adapter = adapter_of(Hyperformer, 768, 96, task_embedding=512, hidden=128, projected=8, per_site=True)
    tower = parameters(adapter.network) + 6 * parameters(adapter.layer)
    counted = 4 * parameters(adapter.task) + 2 * tower + (2 + 3) * parameters(adapter.generator)
    assert counted + 49_152 + 1_582_848 == 8_579_088


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="projected=1: must be 2 or more"):
        adapter_of(Hyperformer, 8, 4, projected=1)
    with pytest.raises(ValueError, match="activation=gelo: must be one of"):
        adapter_of(Hyperformer, 8, 4, activation="gelo")
