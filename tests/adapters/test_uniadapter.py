"""UniAdapter: its formula in the three ways it is used, its start, and that the start has gradients of a sound size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.adapters.alone import adapter_of
from tests.numerics import assert_close
from vlatrain.adapters import Call
from vlatrain.adapters.uniadapter import UniAdapter

OTHER = Call(other=torch.randn(2, 3, 8))


def adapter_in(tower: str, randomised: bool = True) -> UniAdapter:
    adapter = adapter_of(UniAdapter, 8, 4, other_width=8, tower=tower)
    for parameter in adapter.parameters() if randomised else ():
        nn.init.normal_(parameter, std=0.5)
    return adapter


@pytest.mark.parametrize("tower", ["vision", "text", "fusion", "decoder"])
@pytest.mark.parametrize("call", [Call(), OTHER])
def test_is_the_formula(tower: str, call: Call) -> None:
    adapter, states = adapter_in(tower), torch.randn(2, 5, 8)
    down = adapter.down
    hidden = torch.relu(down.projection(down.norm(states)))
    out = hidden @ adapter.up.weight.T + adapter.up.bias
    if tower in ("fusion", "decoder") and call.other is not None:
        out = adapter.norm(hidden @ adapter.fusion.weight.T + adapter.fusion.bias + out)
    assert_close(adapter(states, call), 0.1 * out)


@pytest.mark.parametrize(("tower", "expected"), [("vision", 2 * 8 + 36 + 40), ("fusion", 2 * 8 + 36 + 2 * 40 + 2 * 8)])
def test_counts(tower: str, expected: int) -> None:
    assert sum(p.numel() for p in adapter_in(tower).parameters()) == expected


@pytest.mark.parametrize("call", [Call(), OTHER])
def test_starts_at_zero_and_can_leave_it(call: Call) -> None:
    adapter, states = adapter_in("fusion", randomised=False), torch.randn(2, 5, 8)
    out = adapter(states, call)
    assert torch.equal(out, torch.zeros_like(out))
    (out * torch.randn_like(out)).sum().backward()
    used = [adapter.up, adapter.fusion] if call.other is not None else [adapter.up]
    assert all(bool(torch.isfinite(part.weight.grad).all() & (part.weight.grad != 0).any()) for part in used)


def test_only_what_fuses_wants_the_other_modality() -> None:
    assert adapter_in("fusion").reads_other
    assert not adapter_in("vision").reads_other
