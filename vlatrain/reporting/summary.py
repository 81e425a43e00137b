"""What a person sees when a run is done: the scores, what they cost, where everything is, and what to try next."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.config.joint import subtasks
from vlatrain.config.methods import ROUTER
from vlatrain.reporting.console import BRIEF, print_sentence
from vlatrain.reporting.console import RichConsole as Console
from vlatrain.reporting.scores import group_rows, result_line, score_table
from vlatrain.runs import RunFolder


def show_run(config: TrainConfig, folder: Path, metrics: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a finished run; of a sweep's job nothing, the sweep has a line for it.

    Args:
        config: its configuration.
        folder: its folder.
        metrics: the content of its `metrics.json`.
        console: where; null: standard output.
    """
    if BRIEF.get():
        return
    console = console or Console(file=sys.stdout)
    parameters, speed = metrics["parameters"], metrics["speed"]
    table = score_table(config, metrics, f"{config.task.name} · {config.model.name} · {config.adapter.name}")
    for row in group_rows(config, metrics):
        table.add_row(*row)
    if chosen := best_step(metrics):
        table.add_row("best step", chosen[0])
        table.caption = f"{table.caption or ''}\n{chosen[1]}".strip()
        table.caption_justify = "left"
    table.add_row(
        "trainable parameters",
        f"{parameters['trainable']:,} ({parameters['percent']:.2f} % of {parameters['total']:,})",
    )
    if speed["samples_per_s"]:
        table.add_row("training speed", f"{speed['samples_per_s']:,.0f} samples/s")
    table.add_row("time", f"{speed['wall_s']:,.0f} s")
    table.add_row("peak memory", f"{metrics['memory']['peak_mb']:,.0f} MB ({metrics['machine']['device']})")
    if line := result_line(config, metrics):
        print_sentence(line, console, "bold")
    console.print(table)
    show_files(folder, console)
    console.print("Next:")
    for command, why in _next(config, folder):
        together = f"  {command:<44} # {why}" if why else f"  {command}"
        lines = [together] if len(together) <= console.width else [f"  # {why}", f"  {command}"] if why else [together]
        for line in lines:  # a command is whole, however long it is: it is there to be copied
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def best_step(metrics: Mapping[str, Any]) -> tuple[str, str] | None:
    """Which step the weights are of, and on what data it was chosen; None where nothing was chosen.

    Args:
        metrics: the content of a `metrics.json`.
    """
    training = metrics.get("training") or {}
    if not training.get("steps") or training.get("evaluations") is None or not metrics.get("metrics"):
        return None
    where = "the evaluation data" if "test" in metrics else "the data that is reported here"
    chosen = f"{training['best_step']:,} of {training['steps']:,}, best of {training['evaluations']:,}"
    return chosen, f"best step: the best of the evaluations, chosen on {where}"


def asking(config: TrainConfig, folder: object) -> list[str]:
    """Example commands that ask a finished run, one for each subtask of a joint one; a router picks who answers."""
    if config.adapter.name == ROUTER:
        asks = any("question" in subtask.task.spec.given for subtask in subtasks(config).values())
        question = ' question="..."' if asks else ""
        return [f"vlatrain predict run={folder} image=PHOTO.jpg{question}"]
    return [
        f"vlatrain predict run={folder} {f'subtask={name} ' if name else ''}{subtask.task.spec.example}"
        for name, subtask in subtasks(config).items()
    ]


def show_files(folder: Path, console: Console) -> None:
    """Print what is in a run folder."""
    console.print(Text.assemble("Everything is in ", (str(folder), "bold"), ":"), soft_wrap=True)
    files = RunFolder(folder)
    for path, what in (
        (files.adapter, "what was trained, in PEFT's layout"),
        (files.metrics, "the scores, and what they depend on"),
        (files.constants, "what baselines say, by the training data"),
        (files.predictions(), "each evaluated sample: image, prediction, references, score"),
        (files.history, "the course of the training"),
        (files.config, "the whole configuration"),
        (files.data, "what the data is like"),
        (files.log, "what was said"),
        (files.report, "all of it as a page, for a browser"),
    ):
        if path.exists():
            console.print(f"  {path.name:<18} {what}", markup=False, highlight=False, soft_wrap=True)


def _next(config: TrainConfig, folder: Path) -> list[tuple[str, str]]:
    """Commands, each with what it is for."""
    task, model = config.task.name, config.model.name
    select = [] if task == TaskConfig.name else [f"task={task}"]
    select += [] if model == "tiny_blip" else [f"model={model}"]
    given = " ".join(select) + " " if select else ""
    commands = [(command, "") for command in asking(config, folder)]
    if config.adapter.name == "bottleneck":
        commands.append((f"vlatrain -m {given}adapter.dim=4,16,64", "a sweep over the bottleneck's width"))
        commands.append((f"vlatrain -m {given}adapter=none,lora,full", "the frozen model, LoRA, full fine-tuning"))
    if config.data.name == "shapes":
        files = [
            f"data{f'.subtasks.{name}' if name else ''}.train={name.upper() or 'TRAIN'}.jsonl"
            for name in subtasks(config)
        ]
        commands.append((f"vlatrain {given}data=files {' '.join(files)}", "your own images"))
    commands.append((f"vlatrain inspect {given}".strip(), "points, parameters, memory"))
    return commands
