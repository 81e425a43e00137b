"""The cross-modal adapter against attention written out, its mask, its count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.alone import adapter_of
from tests.numerics import assert_close
from vlatrain.adapters import Bottleneck, Call, CrossModal


def made(width: int = 6, dim: int = 4, other_width: int = 5, **options: object) -> CrossModal:
    """One whose every tensor has random values."""
    torch.manual_seed(1)
    adapter = adapter_of(CrossModal, width, dim, other_width=other_width, **options)  # type: ignore[arg-type]
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return adapter


def written_out(adapter: CrossModal, states: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The formula, state by state and head by head."""
    size = adapter.down.projection.out_features // adapter.heads
    out = torch.zeros_like(states)
    for row in range(len(states)):
        latent = adapter.latent(other[row][mask[row].bool()])
        for place, state in enumerate(states[row]):
            hidden, found = adapter.down(state), []
            for head in range(adapter.heads):
                part = slice(head * size, (head + 1) * size)
                weights = (latent[:, part] @ hidden[part] / size**0.5).softmax(dim=0)
                found.append(weights @ latent[:, part])
            hidden = hidden + adapter.cross_gate.tanh() * torch.cat(found)
            out[row, place] = adapter.scaling * adapter.up.projection(torch.nn.functional.gelu(hidden))
    return out


@pytest.mark.parametrize("heads", [1, 2])
def test_is_the_formula_and_heeds_the_mask(heads: int) -> None:
    adapter = made(latent_heads=heads, scaling=0.7)
    states, other = torch.randn(2, 3, 6), torch.randn(2, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]])
    expected = written_out(adapter, states, other, mask)
    assert_close(adapter(states, Call(other=other, mask=mask.bool())), expected)
    assert_close(adapter(states, Call(other=other, mask=mask)), expected)
    everything = torch.ones_like(mask)
    assert_close(adapter(states, Call(other=other)), written_out(adapter, states, other, everything))


def test_without_the_other_modality_or_with_its_gate_closed_it_is_a_plain_bottleneck() -> None:
    adapter = made()
    plain = adapter_of(Bottleneck, 6, 4)
    plain.load_state_dict({key: value for key, value in adapter.state_dict().items() if key.startswith(("down", "up"))})
    states, other = torch.randn(2, 3, 6), torch.randn(2, 4, 5)
    assert torch.equal(adapter(states, Call()), plain(states))
    assert not torch.equal(adapter(states, Call(other=other)), plain(states))
    second = adapter(states, Call(other=other, mask=torch.tensor([[0] * 4, [1] * 4])))  # the first row sees none of it
    assert torch.equal(second[0], plain(states)[0])
    assert torch.equal(second[1], adapter(states, Call(other=other, mask=torch.ones(2, 4)))[1])
    second.sum().backward()
    assert all(p.grad.isfinite().all() for p in adapter.parameters())
    torch.nn.init.zeros_(adapter.cross_gate)
    assert torch.equal(adapter(states, Call(other=other)), plain(states))


@given(width=st.integers(1, 20), dim=st.integers(1, 10), other=st.integers(1, 20), bias=st.booleans())
def test_zero_at_the_start_and_counted(width: int, dim: int, other: int, bias: bool) -> None:
    adapter = adapter_of(CrossModal, width, dim, other_width=other, bias=bias)
    assert adapter.cross_gate.item() == 0
    added = adapter(torch.randn(2, 3, width), Call(other=torch.randn(2, 4, other)))
    assert torch.equal(added, torch.zeros(2, 3, width))
    assert sum(p.numel() for p in adapter.parameters()) == CrossModal.count(width, dim, bias, other)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_a_gate_that_starts_open_still_starts_at_zero_and_learns_from_the_first_step(gate: float) -> None:
    """The second step has a gradient for what reads the image where the gate is open; where it starts closed there is none yet."""
    adapter = adapter_of(CrossModal, 6, 4, other_width=5, gate=gate)
    states, call = torch.randn(2, 3, 6), Call(other=torch.randn(2, 4, 5))
    assert torch.equal(adapter(states, call), torch.zeros(2, 3, 6))
    step = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(2):
        step.zero_grad()
        (adapter(states, call) - 1).square().mean().backward()
        step.step()
    read = adapter.latent.projection.weight.grad
    assert read is not None
    assert bool(read.any()) == (gate == 1.0)


def test_the_count_of_its_docstring() -> None:
    assert CrossModal.count(768, 64) == 148_353


def test_low_precision_states_keep_their_type() -> None:
    adapter = made()
    states, other = torch.randn(2, 3, 6).bfloat16(), torch.randn(2, 4, 5).bfloat16()
    added = adapter(states, Call(other=other))
    assert added.dtype == torch.bfloat16
    assert torch.equal(added, adapter(states.float(), Call(other=other.float())).bfloat16())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latent_heads": 3}, "must divide dim=4"),
        ({"latent_heads": 0}, "must divide"),
        ({"other_width": 0}, "gets none"),
    ],
)
def test_refused(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        adapter_of(CrossModal, **{"width": 6, "dim": 4, "other_width": 5, **options})
