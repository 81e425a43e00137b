"""Routing functions against the paper's formulas, their mask, their count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.alone import adapter_of
from tests.numerics import assert_close
from vlatrain.adapters import Bottleneck, Call, Routing
from vlatrain.adapters.routing import FUNCTIONS


def formula(function: str, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Of states h (L, r) and the other modality's x (S, r), which all count."""
    v = x.mean(dim=0)
    if function == "add":
        return h + v
    if function == "multiply":
        return h * v
    if function == "expand":
        return h @ v.expand(len(v), len(v))
    return h @ x.T @ x / len(x)


def made(other_width: int, function: str) -> Routing:
    torch.manual_seed(1)
    return adapter_of(
        Routing, 6, 4, other_width=other_width, function=function, init="normal", init_std=0.5, activation="tanh"
    )


@pytest.mark.parametrize("other_width", [6, 5])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_is_the_formula_and_heeds_the_mask(function: str, other_width: int) -> None:
    adapter = made(other_width, function)
    states, other = torch.randn(2, 3, 6), torch.randn(2, 4, other_width)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]]).bool()
    down = adapter.down if other_width == 6 else adapter.latent
    assert down is not None
    for keep, call in ((mask, Call(other=other, mask=mask)), (torch.ones_like(mask), Call(other=other))):
        added = adapter(states, call)
        for row in range(2):
            hidden = formula(function, adapter.down(states[row]), down(other[row][keep[row]]))
            assert_close(added[row], adapter.up.projection(torch.tanh(hidden)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_without_the_other_modality_it_is_a_plain_bottleneck(function: str) -> None:
    adapter = made(6, function)
    plain = adapter_of(Bottleneck, 6, 4, activation="tanh")
    plain.load_state_dict(adapter.state_dict())  # and has no parameter more
    states = torch.randn(2, 3, 6)
    assert torch.equal(adapter(states, Call()), plain(states))
    hidden = Call(other=torch.randn(2, 4, 6), mask=torch.tensor([[0] * 4, [1] * 4]))  # the first row sees none of it
    assert torch.equal(adapter(states, hidden)[0], plain(states)[0])
    assert not torch.equal(adapter(states, hidden)[1], plain(states)[1])


@given(width=st.integers(1, 20), dim=st.integers(1, 10), other=st.integers(1, 20), bias=st.booleans())
def test_zero_at_the_start_and_counted(width: int, dim: int, other: int, bias: bool) -> None:
    adapter = adapter_of(Routing, width, dim, other_width=other, bias=bias)
    added = adapter(torch.randn(2, 3, width), Call(other=torch.randn(2, 4, other)))
    assert torch.equal(added, torch.zeros(2, 3, width))
    assert sum(p.numel() for p in adapter.parameters()) == Routing.count(width, dim, bias, other)


def test_counts() -> None:
    assert Routing.count(768, 64) == Bottleneck.count(768, 64)  # parameter-free
    assert Routing.count(512, 16, other_width=768) == Bottleneck.count(512, 16) + 768 * 16 + 16  # CLIP's text tower


@pytest.mark.parametrize("options", [{"function": "subtract"}, {"other_width": 0}])
def test_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"function=subtract: must be one of add, multiply|gets none"):
        adapter_of(Routing, **{"width": 6, "dim": 4, "other_width": 6, **options})
