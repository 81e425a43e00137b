"""The tolerance lets other orders of summing pass, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.pytorch_utils import Conv1D

from tests.numerics import assert_close, near, terms_of, tolerance


def fails(found: torch.Tensor, expected: torch.Tensor, through: nn.Module | int) -> bool:
    with pytest.raises(AssertionError):
        assert_close(found, expected, through)
    return True


@pytest.mark.parametrize("terms", [8, 64, 512, 4096])
def test_sums_in_another_order_pass_and_one_term_in_thousands_does_not(terms: int) -> None:
    factors, weights = torch.randn(64, terms), torch.randn(terms, 32)
    order = torch.randperm(terms)
    expected = (factors.double() @ weights.double()).float()
    one_by_one = torch.zeros(64, 32)
    for term in order.tolist():
        one_by_one += factors[:, term, None] * weights[term]
    for found in (factors @ weights, factors[:, order] @ weights[order], one_by_one):
        assert_close(found, expected, terms)
    assert fails(factors[:, 1:] @ weights[1:], expected, terms)
    assert fails(expected * (1 + 1e-3), expected, terms)


def test_shorter_types_fail() -> None:
    factors, weights = torch.randn(64, 512), torch.randn(512, 32)
    expected = factors @ weights
    assert fails((factors.bfloat16() @ weights.bfloat16()).float(), expected, 512)
    assert fails((factors.half() @ weights.half()).float(), expected, 512)  # of TF32's length


def test_a_masked_token_that_is_seen_a_little_fails() -> None:
    query, key, value = (torch.randn(2, 3, 9, 8) for _ in range(3))
    mask = torch.zeros(1, 9)
    mask[0, -1] = -torch.inf
    expected = scaled_dot_product_attention(query, key, value, mask)
    assert_close(scaled_dot_product_attention(query, key[:, :, :-1], value[:, :, :-1]), expected)
    mask[0, -1] = -5.0
    assert fails(scaled_dot_product_attention(query, key, value, mask), expected, 256)


def test_what_cancels_is_measured_by_what_it_was() -> None:
    tensors = {"large": torch.tensor([1000.0, 3.0]), "cancelled": torch.tensor([1e-9])}
    assert_close({**tensors, "cancelled": torch.tensor([5e-6])}, tensors)
    with pytest.raises(AssertionError, match="cancelled"):
        assert_close({**tensors, "cancelled": torch.tensor([5e-3])}, tensors)
    with pytest.raises(AssertionError):
        assert_close({"large": tensors["large"]}, tensors)
    assert near(2.0) == 2.00001
    assert near(2.0) != 2.0003
    assert near(2.0, scale=100.0) == 2.0003


def test_terms_are_those_of_all_layers_and_too_many_are_refused() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), Conv1D(3, 5), nn.Conv2d(2, 4, 3))
    assert terms_of(model) == 7 + 5 + 2 * 3 * 3
    assert tolerance(model) == tolerance(30)
    with pytest.raises(AssertionError, match="tells no error from rounding"):
        tolerance(200_000)
