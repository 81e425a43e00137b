"""None, adapter, LoRA and full fine-tuning on the built-in tasks, in one process run: prints (and writes) the table.

    python scripts/compare_methods.py [--out comparison.md] [--runs FOLDER] [--seeds 1] [--tasks vqa,captioning] [OVERRIDE ...]

Each cell is a whole run of the command line, with its own run folder; overrides go to every run (`trainer.epochs=2`). With `--runs`
the folders are kept, and `vlatrain report run=FOLDER` gives the same table, and more, from them alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from vlatrain.reporting.pages import snapshot
from vlatrain.reporting.pages.methods import markdown, methods_table

#: What all runs of a task have in common: captions take every method longer.
TASKS = {"vqa": [], "captioning": ["trainer.epochs=4"], "retrieval": []}
METHODS = ("none", "bottleneck", "lora", "full")


def run(task: str, method: str, seed: int, folder: Path, overrides: list[str]) -> Path:
    """One run of the command line.

    Returns:
        Its folder.
    """
    run_folder = folder / f"{task}-{method}-{seed}"
    command = [sys.executable, "-m", "vlatrain", f"task={task}", f"adapter={method}", f"seed={seed}", "run.report=off"]
    subprocess.run([*command, f"run.dir={run_folder}", *TASKS[task], *overrides], check=True)
    return run_folder


def main() -> None:
    """Run everything and print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table here as well")
    parser.add_argument("--runs", type=Path, help="keep the run folders in this one, which must be new or empty")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each cell; the table shows their mean")
    parser.add_argument("--tasks", default=",".join(TASKS), help="some of them, by commas")
    parser.add_argument("overrides", nargs="*", help="overrides for every run")
    options = parser.parse_args()
    if options.runs and options.runs.exists() and any(options.runs.iterdir()):
        parser.error(f"--runs {options.runs}: it is not empty; choose another folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary)
        runs = [
            snapshot(run(task, method, seed, folder, options.overrides))
            for task in options.tasks.split(",")
            for method in METHODS
            for seed in range(options.seeds)
        ]
        table = markdown(methods_table(runs))
    print(table)
    if options.out:
        options.out.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
