"""Training speed and memory of full-size BLIP-base and CLIP-B/16: vlatrain, full fine-tuning, and PEFT's LoRA with `Trainer`.

    python scripts/bench_training.py [--rows captioning vqa ...] [--steps 5] [--samples 64] [--json FILE] [--plot FILE]

Weights are random and images are generated JPEGs of 640 x 480, as speed depends on neither; everything else is the real thing:
vlatrain is its own command line on data=files, through its loop, with its default settings (so it finds out for itself what to
keep); full fine-tuning is the same with adapter=full; `Trainer` gets the transformers class with PEFT's LoRA of rank 8 on the
linear layers of the same towers (query, value, and both of the feed-forward), a data set that opens images and calls the
processor, its default fused AdamW, and no metrics. Every side is a process of its own (bench_sides.py), one after the other.

Steady state is the median step without the first; a cached one is given ten times as many. Whole runs are seconds from start to
end, imports and making the cache included. FLOPs are those that torch's counter counts. `reached` is the measured ratio
over the one that the FLOPs allow: above 100 %, less than the arithmetic is left. With a GPU everything is bf16 there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_sides import ANSWER, CAPTION, QUESTION, Spec
from PIL import Image
from rich.console import Console
from rich.table import Table

DECODER, FUSION, LAST4 = ["decoder"], ["fusion", "decoder"], ["vision.last4.*", "text.last4.*"]
SIDES = Path(__file__).with_name("bench_sides.py")


@dataclass(frozen=True)
class Row:
    """One line of the benchmark.

    Attributes:
        spec: what every side trains.
        kept: whether there is a prefix to keep, so that vlatrain is given ten times as many steps.
        full: whether full fine-tuning is measured too.
        wanted: ratios to reach, against PEFT and against full fine-tuning.
    """

    spec: Spec
    kept: bool = True
    full: bool = True
    wanted: tuple[float | None, float | None] = (None, None)


ROWS = {
    "captioning, decoder": Row(Spec("blip", "captioning", DECODER), wanted=(6, 18)),
    "vqa, fusion and decoder": Row(Spec("blip", "vqa", FUSION), wanted=(5, 14)),
    "vqa, decoder": Row(Spec("blip", "vqa", DECODER, batch=16), full=False, wanted=(25, None)),
    "retrieval, last 4": Row(Spec("clip", "retrieval", LAST4), wanted=(1.9, 4.3)),
    "retrieval, last 2": Row(Spec("clip", "retrieval", ["vision.last2.*", "text.last2.*"]), full=False),
    "captioning, everywhere": Row(
        Spec("blip", "captioning", ["vision", "decoder"], batch=4), kept=False, wanted=(1.2, 1.8)
    ),
    "vqa, everywhere": Row(Spec("blip", "vqa", ["vision", "fusion", "decoder"], batch=4), kept=False),
    "retrieval, everywhere": Row(Spec("clip", "retrieval", ["vision", "text"]), kept=False),
    "captioning, 10 epochs": Row(Spec("blip", "captioning", DECODER, epochs=10), full=False, wanted=(4, None)),
    "captioning, sweep of 4": Row(
        Spec("blip", "captioning", DECODER, epochs=3, widths=(16, 32, 64, 128)), full=False, wanted=(5.5, None)
    ),
    "captioning, sweep of 8": Row(
        Spec("blip", "captioning", DECODER, epochs=2, widths=(8, 16, 24, 32, 48, 64, 96, 128)),
        full=False,
        wanted=(5.5, None),
    ),
}
MEMORY = {"captioning, decoder": (0.85, 0.3)}  # at most this share of the peak of PEFT, and of full fine-tuning
STARTS = {  # beside each other, as a user waits for them
    "import torch, transformers, peft": [sys.executable, "-c", "import torch, transformers, peft"],
    "vlatrain --help": ["vlatrain", "--help"],
    "vlatrain --cfg job": ["vlatrain", "--cfg", "job"],
    "vlatrain inspect model=blip": ["vlatrain", "inspect", "model=blip"],
    "vlatrain trainer.max_steps=1": [
        "vlatrain",
        "trainer.max_steps=1",
        "trainer.eval_every=100000",
        "data.eval_size=8",
    ],
}


def make_data(folder: Path, samples: int) -> Path:
    """JPEGs and the files that name them."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(samples):
        small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        words = {"question": QUESTION, "answer": f"{ANSWER} {number}", "caption": f"{CAPTION} {number}"}
        lines.append(json.dumps({"image": f"{number}.jpg", **words}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "eval.jsonl").write_text("\n".join(lines[-2:]) + "\n", encoding="utf-8")
    return folder


def run(side: str, spec: Spec, scratch: Path) -> dict[str, Any]:
    """One side in a process of its own; the seconds it took, but for counting FLOPs, are among the figures.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    folder = scratch / side
    folder.mkdir()
    given, out = folder / "spec.json", folder / "out.json"
    given.write_text(json.dumps(asdict(spec)), encoding="utf-8")
    started = time.perf_counter()
    command = [sys.executable, str(SIDES), side, str(given), str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "VLATRAIN_CACHE": str(scratch / "kept")}
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stdout}\n{done.stderr}")
    found = json.loads(out.read_text(encoding="utf-8"))
    return {**found, "seconds": seconds - found["counting_s"]}


def measure(row: Row, samples: int, steps: int, console: Console) -> dict[str, dict[str, Any]]:
    """All sides of a row, and how they compare."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        spec = replace(row.spec, data=str(make_data(scratch, samples if row.spec.epochs else 2 * row.spec.batch)))
        for side in ("vlatrain", "peft", "full") if row.full else ("vlatrain", "peft"):
            count = 0 if spec.epochs else 10 * steps if side == "vlatrain" and row.kept else steps
            with console.status(f"{spec.task} of {spec.model}, {', '.join(spec.points)}: {side}"):
                found[side] = run(side, replace(spec, steps=count), scratch)
    mine = found["vlatrain"]
    for side, wanted in zip(("peft", "full"), row.wanted, strict=True):
        if side in found:
            one = found[side]
            speed, time_ = mine["samples_per_s"] / one["samples_per_s"], one["seconds"] / mine["seconds"]
            one["ratio"] = time_ if row.spec.epochs else speed
            one["by_flops"] = None if row.spec.epochs else one["gflop"] / mine["gflop"]
            one["memory"] = mine["peak_mb"] / one["peak_mb"]
            one["wanted"] = wanted
    return found


def starts(repeats: int = 3) -> dict[str, float]:
    """Seconds of commands from start to end, the best of some."""
    found = {}
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for name, command in STARTS.items():
        times = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as scratch:
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=scratch, env=environment)
                times.append(time.perf_counter() - started)
        found[name] = min(times)
    return found


def table(found: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """Every row and side."""
    shown = Table(
        "work",
        "side",
        "samples/s",
        "seconds",
        "peak MB",
        "of it",
        "GFLOP",
        "faster",
        "wanted",
        "FLOPs allow",
        "reached",
    )
    for name, sides in found.items():
        for side, one in sides.items():
            cells = [name if side == "vlatrain" else "", side, f"{one['samples_per_s']:.2f}", f"{one['seconds']:.0f}"]
            cells += [
                f"{one['peak_mb']:,.0f}",
                f"{one['memory']:.2f}" if "memory" in one else "",
                f"{one['gflop']:.1f}",
            ]
            if "ratio" in one:
                limit = one["by_flops"]
                cells += [f"{one['ratio']:.1f}x", f"{one['wanted']}x" if one["wanted"] else ""]
                cells += [f"{limit:.1f}x", f"{100 * one['ratio'] / limit:.0f} %"] if limit else []
            shown.add_row(*cells)
    return shown


def plot(found: dict[str, dict[str, dict[str, Any]]], file: Path) -> None:
    """Bars of how many times faster, by row and side; a tick where the ratio of FLOPs is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.55 * len(found)))
    for side, colour, shift in (("peft", "tab:blue", 0.18), ("full", "tab:gray", -0.18)):
        ones = [
            (len(found) - 1 - row + shift, sides[side]) for row, sides in enumerate(found.values()) if side in sides
        ]
        label = {"peft": "than PEFT LoRA with Trainer", "full": "than full fine-tuning"}[side]
        bars = axes.barh([y for y, _ in ones], [one["ratio"] for _, one in ones], 0.34, color=colour, label=label)
        axes.bar_label(bars, [f" {one['ratio']:.1f}x" for _, one in ones], fontsize=8)
        limits = [(y, one["by_flops"]) for y, one in ones if one["by_flops"]]
        axes.plot(
            [x for _, x in limits],
            [y for y, _ in limits],
            "k|",
            markersize=11,
            label="what FLOPs allow" if side == "peft" else None,
        )
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [*found][::-1])
    axes.set_xlabel("times faster")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "starts"], default=[*ROWS, "starts"], metavar="ROW")
    parser.add_argument(
        "--steps", type=int, default=5, help="optimizer steps in steady state (a cached one: ten times as many)"
    )
    parser.add_argument("--samples", type=int, default=64, help="images of the whole runs")
    parser.add_argument("--batch", type=int, help="samples in a step, for all rows (for a GPU)")
    parser.add_argument("--gpu", action="store_true", help="stop if there is no GPU, instead of measuring the CPU")
    parser.add_argument("--json", type=Path, help="write the figures here; rows that it has from before stay")
    parser.add_argument("--plot", type=Path, help="draw them here")
    options = parser.parse_args()
    if options.gpu and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; without --gpu (make bench) the CPU is measured")
    console = Console(width=None if sys.stdout.isatty() else 140)
    kept = json.loads(options.json.read_text(encoding="utf-8")) if options.json and options.json.exists() else {}
    found, seconds = kept.get("rows", {}), kept.get("starts", {})
    for name in options.rows:
        if name in ROWS:
            row = (
                ROWS[name]
                if not options.batch
                else replace(ROWS[name], spec=replace(ROWS[name].spec, batch=options.batch))
            )
            found[name] = measure(row, options.samples, options.steps, console)
            console.print(table({name: found[name]}))
        else:
            seconds = starts()
        found = {name: found[name] for name in ROWS if name in found}
        if options.json:
            options.json.write_text(json.dumps({"rows": found, "starts": seconds}, indent=2) + "\n", encoding="utf-8")
    console.print(table(found))
    for name, (peft, full) in MEMORY.items():
        if name in found:
            console.print(f"peak memory of {name}: wanted at most {peft} of PEFT's and {full} of full fine-tuning's")
    for name, time_ in seconds.items():
        console.print(f"{time_:6.2f} s  {name}")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
