"""Rows with several adapters, each with a weight: what they add is the weighted sum of what each adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.injection.test_rows import two_adapters
from vlatrain.adapters import Call
from vlatrain.injection.context import BASE, rows
from vlatrain.injection.peft_method import width_of
from vlatrain.injection.site import Site


@pytest.fixture(scope="module")
def place() -> tuple[Any, Site]:
    """A model with two adapters, and one of its sites."""
    backbone, _ = two_adapters("blip", "vqa")
    return backbone.model, next(module for module in backbone.model.modules() if isinstance(module, Site))


def applied(place: tuple[Any, Site], states: Tensor, named: Any) -> Tensor:
    model, site = place
    with torch.no_grad(), rows(model, named):
        return site._by_rows(states, None, None, None)


def test_weights_are_of_what_each_adds(place: tuple[Any, Site]) -> None:
    _, site = place
    states = torch.randn(5, 3, width_of(site.target), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (site.units[name](states, Call()) for name in ("default", "other"))
    named = [{"default": 0.25, "other": 0.75}, "other", BASE, {"default": 1.0}, {"other": 0.5}]
    wanted = torch.stack([0.25 * one[0] + 0.75 * other[0], other[1], torch.zeros_like(one[2]), one[3], 0.5 * other[4]])
    torch.testing.assert_close(applied(place, states, named), states + wanted)


def test_a_whole_weight_is_the_name_alone_to_the_last_bit(place: tuple[Any, Site]) -> None:
    _, site = place
    states = torch.randn(2, 3, width_of(site.target), generator=torch.Generator().manual_seed(1))
    plain = applied(place, states, ["default", "other"])
    assert torch.equal(applied(place, states, [{"default": 1.0}, {"other": 1.0}]), plain)


def test_beams_repeat_weights(place: tuple[Any, Site]) -> None:
    _, site = place
    states = torch.randn(4, 3, width_of(site.target), generator=torch.Generator().manual_seed(2))
    two = [{"default": 0.5, "other": 0.5}, "other"]
    assert torch.equal(applied(place, states, two), applied(place, states, [two[0], two[0], two[1], two[1]]))
