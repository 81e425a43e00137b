"""Switching costs the same however many adapters are resident: by what is touched; scripts/bench_switching.py has the clock."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import adapter_config, make_samples, small_config
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.injection.attach import attach
from vlatrain.injection.peft_method import Site

TEXTS = [text for s in make_samples() for text in s.captions]


def resident(count: int) -> tuple[Any, list[Site]]:
    """A small CLIP with so many adapters, and its sites."""
    config = small_config("clip")
    backbone = load(config, "retrieval", texts=TEXTS)
    model: Any = attach(backbone.model, adapter_config("bottleneck", dim=2), sites(config, "retrieval", ["*"]))
    for number in range(1, count):
        model.add_adapter(f"a{number}", copy.deepcopy(model.peft_config["default"]))
    return model, [module for module in model.modules() if isinstance(module, Site)]


def touched(monkeypatch: pytest.MonkeyPatch, call: Any) -> list[int]:
    """Which modules have their gradients switched in a call."""
    seen: list[int] = []
    switch = nn.Module.requires_grad_
    with monkeypatch.context() as patch:
        patch.setattr(
            nn.Module, "requires_grad_", lambda self, flag=True: (seen.append(id(self)), switch(self, flag))[1]
        )
        call()
    return seen


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_switching_touches_the_old_and_the_new_adapter_only(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, places = resident(count)
    model.set_adapter("a1")
    found = touched(monkeypatch, lambda: model.set_adapter("a2"))
    assert sorted(found) == sorted(id(site.units[name]) for site in places for name in ("a1", "a2"))
    assert {
        name.split(".vlatrain_unit.")[1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad
    } == {"a2"}


def test_adding_one_leaves_the_resident_ones_in_their_place_and_as_they_were() -> None:
    model, places = resident(3)
    model.set_adapter("a1")
    before = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    model.add_adapter("new", copy.deepcopy(model.peft_config["default"]))
    assert all([*site.units] == ["default", "a1", "a2", "new"] for site in places)
    after = {name: (id(p), p.requires_grad) for name, p in model.named_parameters() if ".new." not in name}
    assert after == before
    with pytest.raises(ValueError, match="adapter name"):
        model.add_adapter("a.b", copy.deepcopy(model.peft_config["default"]))
    assert all([*site.units] == ["default", "a1", "a2", "new"] for site in places), (
        "what was resident survives a refusal"
    )


@pytest.mark.slow
def test_only_the_new_one_is_walked_through_when_it_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many modules are looked at with 50 resident adapters as with 3."""
    counts = []
    for count in (3, 50):
        model, _ = resident(count)
        seen = [0]
        walk = nn.Module.named_modules

        def counting(self: nn.Module, *args: Any, seen: list[int] = seen, walk: Any = walk, **kwargs: Any) -> Any:
            for item in walk(self, *args, **kwargs):
                seen[0] += 1
                yield item

        config = copy.deepcopy(model.peft_config["default"])
        tuner = model.base_model
        tuner.peft_config["more"] = config
        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "named_modules", counting)
            tuner.inject_adapter(tuner.model, "more", autocast_adapter_dtype=False)
        counts.append(seen[0])
    assert counts[0] == counts[1] > 0


def test_the_forward_pass_runs_the_active_adapter_only() -> None:
    model, places = resident(5)
    model.set_adapter("a3")
    ran: list[str] = []
    for site in places:
        for name, unit in site.units.items():
            unit.register_forward_hook(lambda *_, name=name: ran.append(name))
    with torch.no_grad():
        model.get_base_model().vision_model(pixel_values=torch.zeros(1, 3, 40, 40))
    assert set(ran) == {"a3"}
