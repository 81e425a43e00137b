from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.alone import adapter_of
from tests.numerics import assert_close
from vlatrain.adapters.tip_adapter import TipAdapter


def filled(**options: float) -> TipAdapter:
    unit = adapter_of(TipAdapter, 7, size=4, **options)  # type: ignore[arg-type]
    unit.store(normalize(torch.randn(4, 7), dim=-1), normalize(torch.randn(4, 7), dim=-1))
    return unit


def test_it_says_what_the_formula_says() -> None:
    unit = filled(alpha=0.7, beta=3.0)
    states = 5 * torch.randn(3, 7)
    for row, said in zip(states, unit(states), strict=True):
        length = float(row.norm())
        # the paper's affinity of each key, then its share
        affinity = [math.exp(-3.0 * (1 - float(row @ key) / length)) for key in unit.keys]
        mixture = sum(a / sum(affinity) * value for a, value in zip(affinity, unit.values, strict=True))
        assert_close(said, length * 0.7 * mixture)


def test_what_it_adds_does_not_depend_on_the_length_of_the_features() -> None:
    unit, states = filled(), torch.randn(3, 7)
    one, other = (normalize(x + unit(x), dim=-1) for x in (states, 100 * states))
    assert_close(one, other)


def test_twice_the_same_samples_say_the_same() -> None:
    unit, twice, states = filled(), adapter_of(TipAdapter, 7, size=8), torch.randn(3, 7)
    twice.store(unit.keys.repeat(2, 1), unit.values.repeat(2, 1))
    assert_close(twice(states), unit(states))


def test_an_empty_cache_adds_nothing() -> None:
    assert not adapter_of(TipAdapter, 7, size=4)(torch.randn(3, 7)).any()


def test_keys_train_if_they_are_to() -> None:
    assert not list(adapter_of(TipAdapter, 512).parameters())
    unit = filled(trains=True)
    assert [name for name, _ in unit.named_parameters()] == ["keys"]
    unit(torch.randn(3, 7)).sum().backward()
    assert unit.keys.grad is not None
    assert unit.keys.grad.abs().sum() > 0
    assert sum(p.numel() for p in adapter_of(TipAdapter, 512, trains=True).parameters()) == 512 * 512 == 262_144
    assert (
        {*adapter_of(TipAdapter, 8, size=2).state_dict()}
        == {*adapter_of(TipAdapter, 8, size=2, trains=True).state_dict()}
        == {"keys", "values"}
    )


@pytest.mark.parametrize("key", ["size", "alpha", "beta"])
def test_options_that_make_no_sense(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=0: must be more than 0"):
        adapter_of(TipAdapter, 8, **{key: 0})
