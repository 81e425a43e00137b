"""`vlatrain eval`: score a finished run again, on its own or other data, with its own or other settings."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table

from vlatrain.config import EvalConfig
from vlatrain.config.files import write_json
from vlatrain.data.subtasks import load_run
from vlatrain.reporting.console import Console, logged
from vlatrain.reporting.summary import scores
from vlatrain.runs import name_output
from vlatrain.training.precision import choose_device, choose_precision
from vlatrain.training.prefix_cache.compute import cache_prefix
from vlatrain.training.setup import load_setup, scored
from vlatrain.training.stopwatch import Stopwatch
from vlatrain.verbs.train import METRICS, Finished, write_evaluation

log = logging.getLogger("vlatrain")


def evaluate(config: EvalConfig) -> Finished:
    """Score a finished run; write `metrics.json` and `predictions.jsonl` into a folder of their own.

    Args:
        config: the run's configuration with what is to differ.

    Raises:
        UserError: data, weights or an adapter that cannot be had.
    """
    run = Path(config.source)
    folder = Path(name_output(config))
    device = choose_device(config.trainer.device)
    precision = choose_precision(config.trainer.precision, device)
    console = Console()
    with logged(console, run / "run.log"):
        samples = load_run(config, [config.split])[config.split]
        log.info("Data: %s %s samples", f"{len(samples):,}", config.split)
        setup = load_setup(config, run, device, precision, {config.split: samples})
        cache_prefix(setup.backbone, config, {config.split: samples}, {}, precision, console)
        watch, started = Stopwatch(device), time.perf_counter()
        evaluation = scored(setup, samples, config.trainer, device, precision, console, watch)
        speed = {"samples_per_s": watch.speed(len(samples)), "wall_s": time.perf_counter() - started}
    metrics: dict[str, Any] = {
        "task": config.task.name,
        "model": config.model.name,
        "adapter": config.adapter.name,
        "run": str(run),
        "split": config.split,
        "samples": len(samples),
        "metric": config.task.metric,
        "metrics": evaluation.metrics,
        "settings": evaluation.settings,
        "speed": speed,
    }
    write_evaluation(folder, evaluation)
    write_json(folder / METRICS, metrics)
    table = Table("what", "value", title=f"{run} on {len(samples):,} {config.split} samples")
    for row in scores(metrics):
        table.add_row(*row)
    table.add_row("speed", f"{speed['samples_per_s']:,.1f} samples/s")
    out = RichConsole()
    out.print(table)
    out.print(f"Scores and predictions are in [bold]{folder}[/]")
    return Finished(folder, metrics)
