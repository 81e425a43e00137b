"""How long `vlatrain check` takes on a made-up VQA set, the first time and the second, in processes of their own.

    python scripts/bench_check.py 10000 100000

Every row has a question of its own; a few hundred PNG files are the images. Prints a table in Markdown.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

IMAGES = 200
TEXT = "what which colour shape is the small large red blue green ring star left right of near above how many"
WORDS = TEXT.split()


def write(folder: Path, rows: int) -> tuple[Path, Path]:
    """A training file of so many rows, and an evaluation file of a tenth, about images of their own."""
    rng = random.Random(0)
    files = []
    for split, count in (("train", rows), ("eval", rows // 10)):
        for number in range(IMAGES):
            Image.new("RGB", (64, 64), (number, len(files), rng.randrange(256))).save(folder / f"{split}{number}.png")
        lines = []
        for number in range(count):
            words = " ".join(rng.choices(WORDS, k=rng.randint(4, 14)))
            record = {
                "image": f"{split}{number % IMAGES}.png",
                "question": f"{words} {number}?",
                "answer": rng.choice(WORDS),
            }
            lines.append(json.dumps(record))
        files.append(folder / f"{split}.jsonl")
        files[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files[0], files[1]


def timed(words: list[str], cache: Path) -> tuple[float, float]:
    """Seconds of a command, and the greatest MB that any command so far has had."""
    start = time.perf_counter()
    environment = {**os.environ, "VLATRAIN_CACHE": str(cache)}
    subprocess.run([sys.executable, "-m", "vlatrain", *words], check=True, capture_output=True, env=environment)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main(sizes: list[int]) -> None:
    """Print the table."""
    print("| rows | first, s | again, s | peak MB |\n|---|---|---|---|")
    for rows in sizes:
        with tempfile.TemporaryDirectory() as place:
            train, evaluation = write(Path(place), rows)
            words = [
                "check",
                "task=vqa",
                "model=tiny_blip",
                "data=files",
                f"data.train={train}",
                f"data.eval={evaluation}",
            ]
            first, peak = timed(words, Path(place) / "cache")
            again, _ = timed(words, Path(place) / "cache")
            print(f"| {rows:,} | {first:.1f} | {again:.1f} | {peak:,.0f} |")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [10_000, 100_000])
