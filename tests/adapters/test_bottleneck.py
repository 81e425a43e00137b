"""The bottleneck: identity at the start, the published count, its options."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.alone import adapter_of
from tests.numerics import assert_close
from vlatrain.adapters import Bottleneck


@given(width=st.integers(1, 40), dim=st.integers(1, 20), bias=st.booleans())
def test_zero_at_the_start_and_counted(width: int, dim: int, bias: bool) -> None:
    adapter = adapter_of(Bottleneck, width, dim, bias=bias)
    states = torch.randn(2, 3, width)
    assert torch.equal(adapter(states), torch.zeros_like(states))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == Bottleneck.count(width, dim, bias)


def test_published_count() -> None:
    assert Bottleneck.count(768, 64) == 99_136  # BLIP-base, one decoder site


def test_is_the_formula() -> None:
    adapter = adapter_of(Bottleneck, 8, 4, activation="relu", scaling=0.5, init="normal", init_std=0.3)
    states = torch.randn(5, 8)
    hidden = torch.relu(states @ adapter.down.projection.weight.T + adapter.down.projection.bias)
    expected = 0.5 * (hidden @ adapter.up.projection.weight.T + adapter.up.projection.bias)
    assert_close(adapter(states), expected)
    assert expected.abs().sum() > 0


def test_dropout_only_in_training() -> None:
    adapter = adapter_of(Bottleneck, 8, 64, dropout=0.5, init="normal")
    states = torch.randn(5, 8)
    assert torch.equal(adapter.eval()(states), adapter(states))
    assert not torch.equal(adapter.train()(states), adapter(states))


def test_low_precision_states_are_computed_in_the_adapters_own() -> None:
    adapter = adapter_of(Bottleneck, 8, 4, init="normal", init_std=0.3)
    states = torch.randn(5, 8, dtype=torch.bfloat16)
    assert adapter(states).dtype == torch.bfloat16
    assert torch.equal(adapter(states), adapter(states.float()).bfloat16())


@pytest.mark.parametrize("options", [{"activation": "gelo"}, {"init": "one"}])
def test_unknown_options(options: dict) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        adapter_of(Bottleneck, 8, 4, **options)
