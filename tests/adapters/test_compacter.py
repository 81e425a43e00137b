"""Compacter: the paper's formula with Kronecker products written out, one rule for both halves, the count."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.alone import adapter_of
from tests.numerics import assert_close
from vlatrain.adapters import borrow
from vlatrain.adapters.compacter import Compacter
from vlatrain.adapters.projections import Phm, Rule


def by_kronecker(projection: Phm, rule: torch.Tensor) -> torch.Tensor:
    """W = sum of A_i (x) B_i with B_i = s_i t_i, term by term: (out, in)."""
    blocks = projection.full if projection.full is not None else projection.left @ projection.right
    return sum(torch.kron(a, b) for a, b in zip(rule, blocks, strict=True))


@given(
    width=st.integers(1, 6), dim=st.integers(1, 4), terms=st.integers(1, 4), rank=st.integers(0, 3), bias=st.booleans()
)
def test_counts_and_starts_at_zero(width: int, dim: int, terms: int, rank: int, bias: bool) -> None:
    width, dim = width * terms, dim * terms
    adapter = adapter_of(Compacter, width, dim, terms=terms, rank=rank, bias=bias)
    states = torch.randn(2, 3, width)
    assert torch.equal(adapter(states), torch.zeros_like(states))
    own = 2 * rank * (width + dim) if rank else 2 * width * dim // terms
    assert sum(p.numel() for p in adapter.parameters()) == own + terms**3 + (width + dim if bias else 0)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_is_the_formula(rank: int) -> None:
    adapter = adapter_of(Compacter, 12, 8, activation="relu", scaling=0.5, init="normal", init_std=0.5, rank=rank)
    states, rule = torch.randn(5, 12), adapter.rule.weight
    down, up = (by_kronecker(half.projection, rule) for half in (adapter.down, adapter.up))
    assert_close(adapter(states), 0.5 * torch.relu(states @ down.T) @ up.T)
    assert adapter(states).abs().sum() > 0


def test_both_halves_follow_a_borrowed_rule_and_copies_are_whole() -> None:
    adapter, other = adapter_of(Compacter, 8, 4, init="normal", init_std=0.5), Rule(4)
    other.start()
    borrow(adapter, "rule", other)
    adapter.resolve()
    states = torch.randn(5, 8)
    copied = copy.deepcopy(adapter)
    before = copied(states)
    assert_close(before, adapter(states))
    assert not any("rule" in name for name, _ in adapter.named_parameters())
    with torch.no_grad():
        other.weight.zero_()
    assert torch.equal(adapter(states), torch.zeros_like(states))
    assert torch.equal(copied(states), before)


def test_widths_that_are_no_multiples_of_the_terms() -> None:
    with pytest.raises(ValueError, match="must be multiples of n=4"):
        adapter_of(Compacter, 10, 4)
