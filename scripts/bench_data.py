"""What many rows cost before the first step, held in memory and mapped from disk: rows/s, seconds and memory.

    python scripts/bench_data.py 10000 100000 1000000

Made-up questions (`bench_check.py`), a training and an evaluation file. Each row of the table is one process of its own, which does
with the data what a training does up to its first step, with `tiny_blip` on the CPU and the kept prefix off. `first`: nothing is
kept yet; `again`: the same once more. `in memory` is the way of small files, forced upon all. Memory is that of the process at the
first step (RSS), with torch and all else that it has imported; the pages of the mapped table are shared by all processes. What a
worker of the data loader has of its own (USS) is what one more process takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bench_check import write

WAYS = {"in memory": 10**12, "mapped": 0}  # rows from which samples are mapped


def at_first_step(words: list[str], fewest: int) -> dict[str, Any]:
    """Run a training up to its first step, in this process; what it took."""
    import psutil

    from vlatrain import compose
    from vlatrain.config.files import kept_folder
    from vlatrain.data import stored
    from vlatrain.data import subtasks as run_samples
    from vlatrain.training.loop import Loop
    from vlatrain.verbs import train as verb

    stored.FEWEST = fewest
    stored.SMALLEST = 0
    config = compose(*words)
    started = time.perf_counter()
    found: dict[str, Any] = {}
    load_run = run_samples.load_run

    def timed(*args: Any) -> Any:
        samples = load_run(*args)
        found["reading"] = time.perf_counter() - started
        return samples

    class FirstStepError(Exception):
        pass

    def stop(loop: Any, passes: Any, track: Any) -> None:
        took = time.perf_counter() - started
        next(passes)  # it starts the workers
        process, place = psutil.Process(), str(kept_folder() / stored.FOLDER)
        pages = sum(file.rss for file in process.memory_maps() if file.path.startswith(place))
        memory = process.memory_info().rss
        found.update(start=took, memory=memory / 2**20, own=(memory - pages) / 2**20)
        found["worker"] = max(child.memory_full_info().uss for child in process.children()) / 2**20
        raise FirstStepError

    verb.load_run = timed
    Loop._step = stop  # type: ignore[method-assign]
    with suppress(FirstStepError):
        verb.train(config)
    kept = kept_folder() / stored.FOLDER
    size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) if kept.is_dir() else 0
    return {**found, "disk": size / 2**20}


def in_a_process(words: list[str], fewest: int, cache: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    environment = {**os.environ, "VLATRAIN_CACHE": str(cache)}
    command = [sys.executable, __file__, "--one", str(fewest), *words]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(sizes: list[int]) -> None:
    """Print the table."""
    print(
        "| rows | samples | | rows/s | start, s | memory, MB | without the table, MB | a worker's own, MB | on disk, MB |\n"
        + f"|{'---|' * 9}"
    )
    for rows in sizes:
        starts: dict[tuple[str, str], dict[str, Any]] = {}
        with tempfile.TemporaryDirectory() as place:
            train, evaluation = write(Path(place), rows)
            data = ["task=vqa", "model=tiny_blip", "data=files", f"data.train={train}", f"data.eval={evaluation}"]
            for way, fewest in WAYS.items():
                for time_of in ("first", "again"):
                    number = len(starts)
                    words = [
                        *data,
                        "trainer.cache=off",
                        "trainer.workers=2",
                        "trainer.epochs=1",
                        f"run.dir={place}/run{number}",
                    ]
                    found = starts[way, time_of] = in_a_process(words, fewest, Path(place) / way.replace(" ", "-"))
                    print(
                        f"| {rows:,} | {way} | {time_of} | {1.1 * rows / found['reading']:,.0f} | {found['start']:.1f} | "
                        f"{found['memory']:,.0f} | {found['own']:,.0f} | {found['worker']:,.0f} | {found['disk']:,.0f} |",
                        flush=True,
                    )
        held, maps = starts["in memory", "again"], starts["mapped", "again"]
        ratios = ", ".join(f"{what} {held[what] / maps[what]:.1f}" for what in ("reading", "start", "memory", "own"))
        print(f"\n{rows:,} rows, again: in memory / mapped: {ratios}\n", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(at_first_step(sys.argv[3:], int(sys.argv[2]))))
    else:
        main([int(word) for word in sys.argv[1:]] or [10_000, 100_000, 1_000_000])
