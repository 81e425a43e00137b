"""Random states: set, put aside, stored as JSON."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python's, numpy's and torch's generators; other processes (rank) draw other numbers."""
    mixed = (seed * 1_000_003 + rank) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)  # of every device


def capture() -> dict[str, Any]:
    """The states of all generators of this process, as JSON values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": _to_text(torch.get_rng_state()),
        "mps": _to_text(torch.mps.get_rng_state()) if torch.backends.mps.is_available() else "",
        "cuda": [_to_text(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_initialized() else [],
    }


def restore(states: dict[str, Any]) -> None:
    """Set all generators to what `capture` returned. States of devices that are not there are left out."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_from_text(states["torch"]))
    if states.get("mps") and torch.backends.mps.is_available():
        torch.mps.set_rng_state(_from_text(states["mps"]))
    if torch.cuda.is_available():
        for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(_from_text(state), device)


States = tuple[Any, Any, Tensor, list[Tensor], Tensor | None]
"""Of Python's, numpy's and torch's generators, the latter on the CPU, on each GPU, and on Apple's."""


def states() -> States:
    """The states of all generators of this process."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda, mps


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the generators as they were before, so that an evaluation does not change the training that follows."""
    before = states()
    try:
        yield
    finally:
        _set(before)


@contextmanager
def replayed(then: States) -> Iterator[None]:
    """Draw again what was drawn after these states, then go on as before."""
    with preserved():
        _set(then)
        yield


def _set(then: States) -> None:
    python, numpy, cpu, cuda, mps = then
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    if mps is not None:
        torch.mps.set_rng_state(mps)


@contextmanager
def seeded_cpu(*seeds: int) -> Iterator[None]:
    """Draw on the CPU as the numbers say, then go on as before: neither the process nor the past has a say in it."""
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 1_000_003 + seed + 1) % (2**32 - 5)
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(mixed)
    np.random.seed(mixed)
    torch.default_generator.manual_seed(mixed)  # not torch.manual_seed, which reaches for the devices
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def _to_text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
