"""None, adapter, LoRA and full fine-tuning on the built-in tasks, in one process run: prints (and writes) the table.

    python scripts/compare_methods.py [--out comparison.md] [--seeds 1] [--tasks vqa,captioning] [OVERRIDE ...]

Each cell is a whole run of the command line, with its own run folder; overrides go to every run (`trainer.epochs=2`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: The metric of each task, and what all its runs have in common: captions take every method longer.
TASKS = {
    "vqa": ("accuracy", []),
    "captioning": ("cider_d", ["trainer.epochs=4"]),
    "retrieval": ("mean_recall", []),
}
METHODS = ("none", "bottleneck", "lora", "full")


def run(task: str, method: str, seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """One run of the command line.

    Returns:
        The content of its `metrics.json`.
    """
    run_folder = folder / f"{task}-{method}-{seed}"
    command = [sys.executable, "-m", "vlatrain", f"task={task}", f"adapter={method}", f"seed={seed}"]
    subprocess.run([*command, f"run.dir={run_folder}", *TASKS[task][1], *overrides], check=True)
    return json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))


def row(task: str, method: str, runs: list[dict[str, Any]], full: float) -> list[str]:
    """One line of the table; `full` is full fine-tuning's metric."""
    score = statistics.mean(found["metrics"][TASKS[task][0]] for found in runs)
    last = runs[-1]
    return [
        task,
        method,
        f"{score:.1f}",
        f"{100 * score / full:.1f} %" if full else "-",
        f"{last['parameters']['percent']:.2f} %",
        f"{last['speed']['samples_per_s']:.0f}" if last["speed"]["samples_per_s"] else "-",
        f"{last['memory']['peak_mb']:.0f}",
        f"{last['speed']['wall_s']:.0f}",
    ]


def main() -> None:
    """Run everything and print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table here as well")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each cell; the table shows their mean")
    parser.add_argument("--tasks", default=",".join(TASKS), help="some of them, by commas")
    parser.add_argument("overrides", nargs="*", help="overrides for every run")
    options = parser.parse_args()
    head = ["task", "method", "metric", "of full", "trainable", "samples/s", "peak MB", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks.split(","):
            found = {
                method: [run(task, method, seed, Path(folder), options.overrides) for seed in range(options.seeds)]
                for method in METHODS
            }
            full = statistics.mean(one["metrics"][TASKS[task][0]] for one in found["full"])
            lines += ["| " + " | ".join(row(task, method, runs, full)) + " |" for method, runs in found.items()]
    table = "\n".join(lines)
    print(table)
    if options.out:
        options.out.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
