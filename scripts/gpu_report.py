"""What the stages of gpu_check.py have in common: what they report, and command lines in their own process."""

from __future__ import annotations

import argparse
import json
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOMENT = (
    "data.train_size=24",
    "data.eval_size=8",
    "trainer.batch_size=8",
    "trainer.accumulate=1",
    "trainer.log_every=1",
)


@dataclass
class Report:
    """What a stage has found so far; its file is written at every note, lest a stage that hangs leave nothing.

    Attributes:
        device: cuda or cpu.
        tiny: whether it is a rehearsal.
        file: where it is written.
        told: the line of the table.
        figures: by name.
        problems: what was not as it should be, a line each.
        status: passed, failed or skipped, at the end.
    """

    device: str
    tiny: bool
    file: Path
    told: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    status: str = ""

    @property
    def where(self) -> str:
        """The word of a command line that says on which device."""
        return f"trainer.device={self.device}"

    def note(self, name: str, figures: Any, problem: str = "") -> None:
        """Add figures, and what is wrong with them, if anything."""
        self.figures[name] = figures
        if problem:
            self.problems.append(f"{name}: {problem}")
        self.write()

    def skip(self, reason: str) -> None:
        """Nothing can be found out here."""
        self.status, self.told = "skipped", reason

    def write(self) -> None:
        """Write the file."""
        found = {key: getattr(self, key) for key in ("status", "told", "problems", "figures")}
        part = self.file.with_suffix(".part")  # whole or not at all: a stage may be ended at any moment
        part.write_text(json.dumps({**found, "machine": machine()}, indent=2, default=str), encoding="utf-8")
        part.replace(self.file)


def machine() -> dict[str, str]:
    """What the figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    found = {
        "python": sys.version.split()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    for package in ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "torchvision", "bitsandbytes"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def train(report: Report, folder: Path, task: str, *words: str, status: int = 0) -> dict[str, Any]:
    """Train on built-in data, as the command line does it.

    Returns:
        losses by step, and what `metrics.json` says of scores, cache, speed and memory.

    Raises:
        RuntimeError: it ended with another status than it should, or a loss is no number.
    """
    command(f"task={task}", f"run.dir={folder}", *MOMENT, *words, report.where, status=status)
    if status:
        return {}
    found = read(folder / "metrics.json")
    losses = {line["step"]: line["loss"] for line in read_lines(folder / "metrics.jsonl") if "loss" in line}
    if not losses or not all(map(math.isfinite, losses.values())):
        raise RuntimeError(f"{folder}: losses {[*losses.values()]}")
    kept = {key: found[key] for key in ("metrics", "cache", "speed", "memory", "machine")}
    return {
        "losses": [losses[step] for step in sorted(losses)],
        "resumed_from": found["training"]["resumed_from"],
        **kept,
    }


def command(*words: str, status: int = 0) -> None:
    """A command line, in this process.

    Raises:
        RuntimeError: it ended with another status than it should.
    """
    from vlatrain.cli.main import main

    print("vlatrain", *words, flush=True)
    if (ended := main(words)) != status:
        raise RuntimeError(f"`vlatrain {' '.join(words)}` ended with status {ended}")


def question(task: str) -> tuple[str, ...]:
    """What `predict` is asked about a picture, which is written."""
    from vlatrain.data.shapes import build

    build("retrieval", "test", 1, 0)[0].image.load().save("asked.png")
    of_task = {
        "vqa": ("question='what is it?'",),
        "instruct": ("question='what is it?'",),
        "retrieval": ("texts=[a ring,a house]",),
        "joint": ("subtask=vqa", "question='what is it?'"),
    }
    return ("image=asked.png", *of_task.get(task, ()))


def small_conf(folder: Path) -> Path:
    """A folder for `--config-dir` with the tests' small backbones, as models named small_NAME."""
    from tests.backbones.small import SETTINGS
    from tests.commands import small_model

    for name in SETTINGS:
        small_model(folder, name)
    return folder


def read(file: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def unlike(found: dict[str, Any], expected: dict[str, Any], limit: float) -> str:
    """How losses differ, if by more than a limit, relatively."""
    pairs = zip(found["losses"], expected["losses"], strict=True)
    apart = max(abs(one - other) / abs(other) for one, other in pairs)
    return "" if apart <= limit else f"losses are apart by {apart:.1e}: {found['losses']}, not {expected['losses']}"


def perform(stages: dict[str, Callable[[Report], None]]) -> None:
    """Run the stage that the command line names, and write its file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=[*stages])
    parser.add_argument("device", choices=["cuda", "cpu"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    import torch

    report = Report(options.device, options.tiny, options.file.resolve())
    try:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU here; --device cpu --tiny rehearses without one")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32
        stages[options.stage](report)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        report.problems.append(f"{type(error).__name__}: {str(error)[-1000:]}")
    report.status = "failed" if report.problems else report.status or "passed"
    report.write()
