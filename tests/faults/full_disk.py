"""A run on a disk that is really full, in a mount namespace of its own: `unshare --map-root-user --mount python -m
tests.faults.full_disk FOLDER`. Prints how often it was refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.commands import command
from tests.faults.sessions import WORDS, result_of, session

STEPS = 24  # from a disk without room to one with enough


def status_of(folder: Path, *words: str) -> tuple[int, str]:
    """How a session ends, and what it says."""
    process = session(folder, *words)
    process.join(120)
    assert not process.is_alive(), "it hangs"
    return process.exitcode, folder.with_suffix(".said").read_text()


def bytes_in(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def main(scratch: Path) -> None:
    """Give the disk of a run more and more room, until the run comes to its end."""
    whole, full = scratch / "one" / "run", scratch / "two" / "run"
    for folder in (whole, full):
        folder.mkdir(parents=True)
    assert command(*WORDS, "trainer.max_steps=1", "trainer.cache=off", f"run.dir={scratch / 'warm'}") == 0
    status, said = status_of(whole, "trainer.cache=off")
    assert status == 0, said
    needed = bytes_in(whole)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * needed}", "tmpfs", str(full)], check=True)
    filler, refused, room = full / "filler", 0, 0
    while True:
        filler.unlink(missing_ok=True)
        free = os.statvfs(full)
        size = max(0, free.f_bavail * free.f_frsize - room)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size) if size else None
        status, said = status_of(full, "trainer.cache=off")
        assert "Traceback" not in said, said
        if status == 0:
            break
        assert status == 2, said
        assert sum(line.startswith("error") for line in said.splitlines()) == 1, said
        assert "No space left on device" in said, said
        refused += 1
        room += needed // STEPS
    assert result_of(full) == result_of(whole)
    print(
        f"refused {refused} times; a run of {needed:,} bytes came to its end, the last time with {room:,} bytes of room"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
