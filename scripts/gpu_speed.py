"""The speed stages of gpu_check.py, one a process: python gpu_speed.py STAGE DEVICE FILE [--tiny]"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_report import Report, command, perform, read, read_lines, small_conf

ROWS = {"captioning": "captioning, decoder", "vqa": "vqa, fusion and decoder", "retrieval": "retrieval, last 4"}


def compared(report: Report) -> None:
    """A row of bench_training.py: vlatrain, PEFT's LoRA with Trainer, and full fine-tuning."""
    import bench_training as bench
    from rich.console import Console

    row = bench.ROWS[ROWS[report.file.stem]]
    batch, steps = (2, 2) if report.tiny else (32, 20)
    spec = replace(row.spec, batch=batch, overrides=_small(row.spec.model) if report.tiny else ())
    found = bench.measure(replace(row, spec=spec), samples=2 * batch, steps=steps, console=Console(stderr=True))
    for side, figures in found.items():
        report.note(side, figures)
    mine, peft, full = (found[side] for side in ("vlatrain", "peft", "full"))
    times = f"{peft['ratio']:.1f} times PEFT's, {full['ratio']:.1f} times full fine-tuning's"
    report.told = f"{mine['samples_per_s']:,.1f} samples/s, {times}; {mine['peak_mb']:,.0f} MB"


def _small(model: str) -> list[str]:
    """The tests' sizes of a backbone, as words of the command line."""
    from tests.backbones.small import SETTINGS

    def written(value: Any) -> str:
        if not isinstance(value, dict):
            return str(value)
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"

    return [f"model.config.{key}={written(value)}" for key, value in SETTINGS[model].items()]


def language_7b(report: Report) -> None:
    """LLaVA's 7B with random weights trains adapters in its language model, in bf16: tokens/s (images' too), peak of memory."""
    import vlatrain.verbs.train as door
    from vlatrain.training.loop import Loop

    batch, steps = (2, 2) if report.tiny else (8, 12)
    tokens: list[int] = []  # of a batch

    class Seen(Loop):
        def run(self) -> Any:
            some = self.task.collate(self.train[:batch])["inputs"]["attention_mask"]
            tokens.append(int(some.sum()))
            return super().run()

    door.Loop = Seen  # type: ignore[misc]
    model = ("--config-dir", str(small_conf(Path("conf"))), "model=small_llava") if report.tiny else ("model=llava",)
    command(
        "task=instruct", *model, "model.random_init=true", "run.dir=run", "data.train_size=64", "data.eval_size=1",
        f"trainer.batch_size={batch}", "trainer.accumulate=1", f"trainer.max_steps={steps}", "trainer.log_every=1",
        "trainer.eval_every=100000", "task.decode.max_new_tokens=4", "trainer.cache=off", "trainer.precision=bf16", report.where,
    )  # fmt: skip
    speeds = [line["samples_per_s"] for line in read_lines(Path("run/metrics.jsonl")) if "loss" in line]
    per_second = statistics.median(speeds[1:]) * tokens[0] / batch
    peak = read(Path("run/metrics.json"))["memory"]["peak_mb"]
    figures = {"tokens_per_s": per_second, "tokens": tokens[0], "batch": batch, "peak_mb": peak}
    report.note("training", figures | {"samples_per_s": speeds})
    report.told = f"{per_second:,.0f} tokens/s, {peak:,.0f} MB"


if __name__ == "__main__":
    perform({**dict.fromkeys(ROWS, compared), "language_7b": language_7b})
