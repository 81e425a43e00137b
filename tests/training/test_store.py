"""Shards: whole or not at all, found again, shared, and bad ones named and made anew."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from vlatrain.training.store import Disk, clear, sizes

STATES = {f"sample-{number}": torch.randn(1, 3 + number, 4) for number in range(3)}


def store(folder: Path, prefix: str = "p") -> Disk:
    return Disk(folder, prefix, {"model": "m"})


def filled(folder: Path) -> Path:
    made = store(folder)
    made.add(STATES)
    made.flush()
    (shard,) = folder.glob("*.safetensors")
    return shard


def test_what_was_added_is_there_before_and_after_it_is_written(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.add(STATES)
    assert sizes(tmp_path) == 0
    for now in (made, None):
        if now is None:
            made.flush()
            now = store(tmp_path)
        for key, state in STATES.items():
            assert key in now
            assert torch.equal(now.get(key), state)
        assert "another" not in now
    assert sizes(tmp_path) > sum(state.nbytes for state in STATES.values())
    assert clear([tmp_path]) > 0
    assert not tmp_path.exists()


@pytest.mark.parametrize("kind", ["cut", "flipped", "noise", "foreign"])
def test_a_bad_shard_is_named_and_removed(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = filled(tmp_path)
    data = shard.read_bytes()
    if kind == "cut":
        shard.write_bytes(data[: len(data) // 2])
    elif kind == "flipped":  # a single bit of a state
        shard.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif kind == "noise":
        shard.write_bytes(b"nothing of the kind")
    with caplog.at_level(logging.WARNING, "vlatrain"):
        found = store(tmp_path, "other" if kind == "foreign" else "p")
    assert not any(key in found for key in STATES)
    assert not shard.exists()
    assert str(shard) in caplog.text
    found.add(STATES)
    found.flush()
    assert torch.equal(store(tmp_path, found.prefix).get("sample-2"), STATES["sample-2"])


def _write(folder: Path, number: int) -> None:
    made = store(folder)
    for part in range(20):
        made.add({f"{number}-{part}": torch.full((1, 2, 2), float(number))})
        made.flush()


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(tmp_path, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = store(tmp_path)
    assert all(found.get(f"{number}-{part}")[0, 0, 0] == number for number in range(2) for part in range(20))


def _write_for_ever(folder: Path) -> None:
    made, number = store(folder), 0
    while True:
        made.add({f"{number}": torch.full((1, 200, 200), float(number))})
        made.flush()
        number += 1


def test_a_kill_leaves_whole_shards_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(tmp_path,))
    process.start()
    while len(list(tmp_path.glob("*.safetensors"))) < 5:
        assert process.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    with caplog.at_level(logging.WARNING, "vlatrain"):
        found = store(tmp_path)
    assert not caplog.records
    assert len(found.places) >= 5
    assert all(found.get(key)[0, 0, 0] == int(key) for key in found.places)
