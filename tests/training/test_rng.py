from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from vlatrain.training import rng


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
    ]


def test_states_survive_json() -> None:
    rng.seed_everything(3)
    draw()  # leaves half a pair of gaussians in two of the generators
    states = json.loads(json.dumps(rng.capture()))
    expected = [draw() for _ in range(3)]
    rng.seed_everything(9)
    rng.restore(states)
    assert [draw() for _ in range(3)] == expected


def test_processes_draw_other_numbers() -> None:
    rng.seed_everything(3, rank=0)
    first = draw()
    rng.seed_everything(3, rank=1)
    assert not set(first) & set(draw())


def test_preserved_and_seeded_leave_no_trace() -> None:
    rng.seed_everything(3)
    expected = draw()
    rng.seed_everything(3)
    with rng.preserved():
        draw()
    with rng.seeded_cpu(1, 2):
        first = draw()
    assert draw() == expected
    with rng.seeded_cpu(1, 2):
        assert draw() == first
    with rng.seeded_cpu(2, 1):
        assert draw() != first


def test_apples_generator_is_put_aside_and_stored_too(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.tensor([1, 2, 3], dtype=torch.uint8)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    stored = rng.capture()
    with rng.preserved():
        states.append(torch.tensor([9], dtype=torch.uint8))
    assert states[-1].tolist() == [1, 2, 3]
    states.append(torch.tensor([9], dtype=torch.uint8))
    rng.restore(stored)
    assert states[-1].tolist() == [1, 2, 3]
