"""Shards: whole or not at all, found again, shared, and bad ones named and made anew; a folder that cannot be written is told."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.disk import killed_while_writing, room
from vlatrain.config import UserError
from vlatrain.training.prefix_cache import store as module
from vlatrain.training.prefix_cache.store import LEFT, Disk, Unwritable, clear, note_of, sizes, unwritable

STATES = {f"sample-{number}": torch.randn(1, 3 + number, 4) for number in range(3)}


def store(folder: Path, prefix: str = "p") -> Disk:
    return Disk(folder, prefix, {"model": "m"})


def filled(folder: Path) -> Path:
    made = store(folder)
    made.add(STATES, True)
    made.flush()
    (shard,) = folder.glob("*.safetensors")
    return shard


def test_what_was_added_is_there_before_and_after_it_is_written(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.add(STATES, in_tuple=True)
    assert sizes(tmp_path) == 0
    for now in (made, None):
        if now is None:
            made.flush()
            now = store(tmp_path)
        for key, state in STATES.items():
            assert key in now
            assert torch.equal(now.get(key), state)
        assert "another" not in now
        assert now.in_tuple is True
    assert note_of(tmp_path) == {"model": "m"}
    assert sizes(tmp_path) > sum(state.nbytes for state in STATES.values())
    assert clear([tmp_path]) > 0
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    "kind", ["cut", "longer", "empty", "noise", "foreign", "no header of ours", "another's header"]
)
def test_a_bad_shard_is_named_and_removed(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = filled(tmp_path)
    data = shard.read_bytes()
    if kind == "cut":
        shard.write_bytes(data[: len(data) // 2])
    elif kind == "longer":
        shard.write_bytes(data + b"x")
    elif kind == "empty":
        shard.write_bytes(b"")
    elif kind == "noise":
        shard.write_bytes(b"nothing of the kind")
    elif kind.endswith("ours"):
        save_file(STATES, shard)
    elif kind.startswith("another"):
        save_file(STATES, shard, {"vlatrain": '["a list"]'})
    with caplog.at_level(logging.WARNING, "vlatrain"):
        found = store(tmp_path, "other" if kind == "foreign" else "p")
    assert not any(key in found for key in STATES)
    assert not shard.exists()
    assert str(shard) in caplog.text
    found.add(STATES, False)
    found.flush()
    assert torch.equal(store(tmp_path, found.prefix).get("sample-2"), STATES["sample-2"])


def flipped(shard: Path) -> None:
    """Change a single bit of the state that lies last in a shard."""
    data = shard.read_bytes()
    shard.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])


def read(found: Disk) -> set[str]:
    """The keys of the states that can be read, each of them twice, and are what was written."""
    states = {key: found.get(key) for key in (*STATES, *STATES)}
    return {key for key, state in states.items() if state is not None and torch.equal(state, STATES[key])}


def test_states_are_checked_when_they_are_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    sums, checked = module._sum, []
    monkeypatch.setattr(module, "_sum", lambda state: checked.append(state) or sums(state))
    found = store(tmp_path)
    assert not checked, "at the start only headers are read"
    found.get("sample-0")
    assert len(checked) == 1
    assert read(found) == STATES.keys()
    assert len(checked) == len(STATES)


def test_a_damaged_state_is_named_once_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = filled(tmp_path)
    flipped(shard)
    with caplog.at_level(logging.WARNING, "vlatrain"):
        found, other = store(tmp_path), store(tmp_path)  # as in two workers
        assert not caplog.records
        assert len(read(found)) == len(read(other)) == len(STATES) - 1
    (told,) = caplog.messages
    assert told.startswith(f"Cache: {shard} is damaged: a state differs from its checksum")
    assert not shard.exists()
    assert len([key for key in STATES if key in found]) == len(STATES) - 1
    assert store(tmp_path).places == {}, "the next run keeps them anew"


def test_a_damaged_shard_that_cannot_be_removed_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flipped(filled(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with caplog.at_level(logging.WARNING, "vlatrain"):
        assert len(read(store(tmp_path))) == len(STATES) - 1
    (told,) = caplog.messages
    assert told.endswith("It cannot be removed (Permission denied): remove it")


def _write(folder: Path, number: int) -> None:
    made = store(folder)
    for part in range(20):
        made.add({f"{number}-{part}": torch.full((1, 2, 2), float(number))}, False)
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
        made.add({f"{number}": torch.full((1, 200, 200), float(number))}, False)
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


def test_a_kill_in_mid_write_leaves_what_is_swept_later_and_listed_until_then(tmp_path: Path) -> None:
    killed_while_writing(lambda: filled(tmp_path))
    (partial,) = tmp_path.iterdir()
    assert not any(key in store(tmp_path) for key in STATES)
    assert sizes(tmp_path) == partial.stat().st_size > 0
    assert partial.exists(), "another process may be writing it"
    long_ago = partial.stat().st_mtime - LEFT - 1
    os.utime(partial, (long_ago, long_ago))
    store(tmp_path)
    assert not partial.exists()


def test_a_full_disk_is_told_and_what_was_added_can_be_read(tmp_path: Path) -> None:
    made = store(tmp_path / "folder")
    made.add(STATES, True)
    with room(100), pytest.raises(Unwritable, match=r"folder cannot be written \(File too large\)"):
        made.flush()
    assert torch.equal(made.get("sample-1"), STATES["sample-1"])
    assert not (tmp_path / "folder").exists()
    made.flush()  # there is room again
    assert torch.equal(store(tmp_path / "folder").get("sample-1"), STATES["sample-1"])


def test_what_a_process_has_opened_stays_when_it_is_pruned(tmp_path: Path) -> None:
    filled(tmp_path / "folder")
    opened, written = store(tmp_path / "folder"), store(tmp_path / "folder")
    written.add({"more": torch.ones(1, 2, 2)}, True)
    written.flush()
    clear([tmp_path / "folder"])
    assert not (tmp_path / "folder").exists()
    assert torch.equal(opened.get("sample-1"), STATES["sample-1"])
    assert torch.equal(written.get("more"), torch.ones(1, 2, 2))
    written.add({"later": torch.ones(1, 2, 2)}, True)
    written.flush()
    assert "later" in store(tmp_path / "folder")


def test_what_is_withdrawn_leaves_nothing_but_what_others_have_kept(tmp_path: Path) -> None:
    made = store(tmp_path / "folder")
    made.add(STATES, True)
    made.flush()
    made.withdraw()
    assert "sample-1" not in made
    assert not (tmp_path / "folder").exists()
    filled(tmp_path / "folder")
    other = store(tmp_path / "folder")
    other.add({"more": torch.ones(1, 2, 2)}, True)
    other.flush()
    other.withdraw()
    assert "sample-1" in store(tmp_path / "folder")
    assert "more" not in store(tmp_path / "folder")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in ("/proc/nowhere", tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("VLATRAIN_CACHE", str(place))
        assert unwritable().startswith(f"{place} cannot be written (")
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "fresh"))
    assert unwritable() == ""
    assert list((tmp_path / "fresh").iterdir()) == []


def test_what_cannot_be_removed_is_told_once_a_folder_and_the_others_are_removed(tmp_path: Path) -> None:
    for name in ("bad", "good"):
        filled(tmp_path / name)
    for name in ("one", "two"):
        (tmp_path / "bad" / f"{name}.safetensors").mkdir()  # a folder is not unlinked
    with pytest.raises(UserError, match="bad cannot be removed") as caught:
        clear(tmp_path.iterdir())
    assert len(caught.value.problems) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def states(numbers: range) -> dict[str, torch.Tensor]:
    return {str(number): torch.full((2, 3), float(number)) for number in numbers}


def test_two_runs_keep_each_state_once(tmp_path: Path) -> None:
    """Both began with nothing; what the first has written the second one does not write again, and reads."""
    folder = tmp_path / ("a" * 32)
    one, two = (Disk(folder, "p", {}) for _ in range(2))
    one.add(states(range(6)), False)
    two.add(states(range(4, 9)), False)
    one.flush()
    two.flush()
    kept = [key for path in folder.iterdir() for key in safe_open(path, "pt").keys()]  # noqa: SIM118
    assert sorted(kept) == [str(number) for number in range(9)]
    assert float(two.get("5").sum()) == 30
    two.refresh()
    assert "0" in two


def test_two_runs_write_one_after_the_other(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 32)
    made = Disk(folder, "p", {})
    made.add(states(range(2)), False)
    writing = threading.Thread(target=made.flush)
    with module._one_at_a_time(tmp_path):
        writing.start()
        writing.join(0.2)
        assert writing.is_alive(), "it waits for its turn"
        assert not made.places
    writing.join()
    assert len(made.places) == 2


def test_the_limit_holds_while_it_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all folders together: another run keeps something else there meanwhile."""
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path))
    one, other = (Disk(tmp_path / (name * 32), name, {}, limit=5000) for name in "ab")
    one.add({"1": torch.zeros(500)}, False)
    one.flush()
    other.add({"2": torch.zeros(500)}, False)
    other.flush()
    one.add({"3": torch.zeros(500)}, False)
    with pytest.raises(Unwritable, match=r"trainer\.cache_gb=5e-06 is reached"):
        one.flush()
    assert one.get("3") is not None
    assert sizes(tmp_path / ("a" * 32)) + sizes(tmp_path / ("b" * 32)) <= 5000


def test_a_process_that_is_stopped_while_it_has_its_turn_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with module._one_at_a_time(tmp_path):
        mine = Disk(tmp_path / ("a" * 32), "p", {})
        mine.add(states(range(2)), False)
        mine.flush()
    assert len(Disk(tmp_path / ("a" * 32), "p", {}).places) == 2
