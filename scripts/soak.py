"""Disturb a training again and again for a while, and see whether anything is lost: `python scripts/soak.py [--seconds 60]`.

The tiny default, with the frozen prefix on disk. Each session of the run is killed or stopped by a signal at a random moment, finds
the disk full from some write on, or has the cache pruned under it; then the same command goes on. Whenever the run comes to its end
it is compared with one that was left alone: the bits of the adapter, each step's loss, the scores and the predictions; then it
begins anew. Prints the figures; status 1 where something differs, a traceback was said, or something half written is left.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.commands import command
from tests.faults.sessions import WORDS, full_from, result_of, session

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT, "SIGHUP": signal.SIGHUP}
FAULTS = (*SIGNALS, "full disk", "pruned cache")
CACHE, LAST = "trainer.cache=disk", 300


def warm(folder: Path) -> None:
    """Import what a training does, once and not in each session."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert command(*WORDS, "trainer.max_steps=1", CACHE, f"run.dir={folder}") == 0


def ended(process: Any) -> int:
    """The status of a process that is about to end."""
    process.join(LAST)
    if process.is_alive():
        process.kill()
        raise SystemExit("a session hangs")
    return int(process.exitcode)


def disturbed(folder: Path, fault: str, draw: random.Random, took: float) -> int:
    """One session with a fault at a random moment; its status."""
    fill = full_from(draw.randint(1, 40)) if fault == "full disk" else (lambda: None)
    process = session(folder, CACHE, before=fill)
    if fault == "full disk":
        return ended(process)
    process.join(draw.random() * took)
    if fault == "pruned cache":
        shutil.rmtree(folder.parent / "cache", ignore_errors=True)
    elif process.is_alive():
        os.kill(process.pid, SIGNALS[fault])
    return ended(process)


def main() -> int:
    """Do so, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, faults, statuses, problems = random.Random(options.seed), Counter[str](), Counter[int](), list[str]()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        alone, folder = Path(scratch) / "alone" / "run", Path(scratch) / "disturbed" / "run"
        for path in (alone, folder):
            path.parent.mkdir()
        warm(Path(scratch) / "warm")
        assert ended(session(alone, CACHE)) == 0, alone.with_suffix(".said").read_text()
        began = time.monotonic()
        assert ended(session(folder, CACHE)) == 0  # the imports are done: how long a session takes
        took = time.monotonic() - began
        shutil.rmtree(folder)
        deck: list[str] = []
        expected, whole, began = result_of(alone), 0, time.monotonic()
        while (running := time.monotonic() - began < options.seconds) or not whole or folder.exists():
            deck = deck or draw.sample(FAULTS, len(FAULTS))  # each of them once, before one comes again
            fault = deck.pop() if running else "none"
            status = disturbed(folder, fault, draw, took) if running else ended(session(folder, CACHE))
            faults[fault] += 1
            statuses[status] += 1
            said = folder.with_suffix(".said").read_text()
            if "Traceback" in said:
                problems.append(f"{fault}: a traceback\n{said}")
            if status == 0:
                whole += 1
                pairs = zip(("adapter", "course", "scores", "predictions"), result_of(folder), expected, strict=True)
                if differing := [f"{name}: {found}, not {wanted}" for name, found, wanted in pairs if found != wanted]:
                    problems.append(f"{fault}: another result than that of the run that was left alone: {differing}")
                if left := [str(path) for path in folder.rglob("*.tmp")]:
                    problems.append(f"{fault}: half written files are left: {left}")
                shutil.rmtree(folder)
    for problem in problems:
        print(problem)
    print(f"faults: {', '.join(f'{number} {fault}' for fault, number in faults.most_common())}")
    print(f"statuses: {', '.join(f'{number} times {status}' for status, number in statuses.most_common())}")
    print(f"{sum(faults.values())} sessions in {time.monotonic() - began:.0f} s, seed {options.seed}")
    print(
        f"{whole} runs came to their end, "
        f"{'each as if left alone' if not problems else f'with {len(problems)} problems'}"
    )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
