"""What an evaluation has found goes on where it stopped: batch by batch, whatever a result is made of, whatever has ended it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.disk import room
from tests.gpu_free.ranks import ranks
from vlatrain.config import UserError
from vlatrain.training import journal as module
from vlatrain.training.batches import SharedBatches
from vlatrain.training.journal import Journal
from vlatrain.training.signals import Interrupted, Stopped

RESULTS = [
    "text",
    3,
    0.1 + 0.2,
    None,
    True,
    ["é\n\x1b", ("a", 1.5)],
    {"loss": torch.tensor(1.25), 3: [torch.arange(6).reshape(2, 3)[:, 1:]]},
    torch.zeros(0, 4),
    torch.tensor([float("nan"), float("inf"), 1e-40]),
    torch.randn(3).bfloat16(),
    (),
]


def numbers(path: Path, key: str, stop: int | None = None, total: int = 10) -> tuple[list[Any], list[int]]:
    """Work on ten items that ends before one of them: the results, and which were computed."""
    computed: list[int] = []

    def one(item: int) -> tuple[int, torch.Tensor]:
        if item == stop:
            raise Stopped(signal.SIGTERM)
        computed.append(item)
        return item, torch.full((2,), item / 3)

    with Journal(path, key) as journal:
        batches = SharedBatches("cpu", 1, journal=journal)
        results = [*batches.map(one, range(total)), *batches.map(lambda item: -item, range(3))]
    return results, computed


def test_a_result_is_what_it_was() -> None:
    for result in RESULTS:
        again = module._plain_again(module._read(module._line(module._encoded(result))), "cpu")
        assert repr(again) == repr(result)
        assert type(again) is type(result)
    assert module._encoded(np.float32(0.5)) == 0.5


def test_what_was_found_is_not_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.part"
    whole, _ = numbers(tmp_path / "other", "a")
    with pytest.raises(
        Interrupted, match=r"SIGTERM: what was found in 4 batches is in .*\.part\. To continue"
    ) as caught:
        numbers(path, "a", stop=4)
    assert caught.value.exit_status == 143
    with pytest.raises(Interrupted, match="7 batches"):
        numbers(path, "a", stop=7)
    again, computed = numbers(path, "a")
    assert computed == [7, 8, 9]
    assert repr(again) == repr(whole)
    assert not path.exists()


def test_what_is_stopped_before_anything_was_found_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="nothing is kept; the same command begins anew"):
        numbers(tmp_path / "out.part", "a", stop=0)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("damage", ["key", "torn", "flipped"])
def test_what_cannot_be_believed_is_computed_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "out.part"
    whole, _ = numbers(tmp_path / "other", "a")
    with pytest.raises(Interrupted):
        numbers(path, "a", stop=6)
    data = bytearray(path.read_bytes())
    if damage == "torn":
        del data[-5:]
    elif damage == "flipped":
        data[data.index(b"tensor", len(data) // 2) + 30] ^= 1
    path.write_bytes(data)
    again, computed = numbers(path, "b" if damage == "key" else "a")
    assert repr(again) == repr(whole)
    assert computed == {"key": [*range(10)], "torn": [5, 6, 7, 8, 9], "flipped": [*range(computed[0], 10)]}[damage]
    assert damage != "flipped" or computed[0] in (3, 4)
    assert ("begun anew" in caplog.text) == (damage == "key")


def test_it_is_written_as_it_goes_so_that_a_kill_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    path = tmp_path / "out.part"
    child = os.fork()
    if not child:
        with Journal(path, "a") as journal:
            for number in SharedBatches("cpu", 1, journal=journal).map(lambda item: item, range(10)):
                if number == 6:
                    os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert numbers(path, "a")[1] == [7, 8, 9]


def test_a_full_disk_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with room(300):
        results, _ = numbers(tmp_path / "out.part", "a")
    assert len(results) == 13
    assert caplog.text.count("cannot be written") == 1


def test_where_nothing_can_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), Journal(tmp_path / "file" / "out.part", "a"):
        pass


def test_two_at_the_same_work_do_not_disturb_each_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "out.part"
    with Journal(path, "a") as journal:
        first = SharedBatches("cpu", 1, journal=journal).map(lambda item: item, range(10))
        next(first)
        numbers(path, "a")
        assert "another process is at the same work" in caplog.text
        assert path.exists()
        assert [*first] == [*range(1, 10)]


@pytest.mark.slow
def test_processes_go_on_together(tmp_path: Path) -> None:
    """Two processes, of which the first one keeps what both find; then with another number of them."""
    path = tmp_path / "out.part"

    def work(rank: int, stop: int | None = None) -> None:
        with Journal(None if rank else path, "a") as journal:
            found = []
            for number in SharedBatches("cpu", 1, journal=journal).map(
                lambda item: (item, torch.ones(1) * item), range(20)
            ):
                found.append(number)
                if number[0] == stop:
                    raise Stopped(signal.SIGTERM)
            assert [item for item, _ in found] == [*range(20)]

    def stopped(rank: int) -> int:
        try:
            work(rank, stop=11)
        except KeyboardInterrupt:  # of the second one, which keeps nothing
            return 1
        except Interrupted:
            return 0
        return 2

    assert ranks(stopped, tmp_path, count=2) == [0, 0]
    assert path.exists()
    assert ranks(lambda rank: work(rank) or 0, tmp_path, count=2) == [0, 0]
    assert not path.exists()
