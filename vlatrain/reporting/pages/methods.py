"""The table of methods: by task and method the mean score over seeds, its share of full fine-tuning, and what it cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vlatrain.reporting.pages.reading import FINISHED, Snapshot

HEAD = ["task", "method", "metric", "of full", "trainable", "samples/s", "peak MB", "seconds"]
FULL = "full"


def methods_table(runs: Sequence[Snapshot]) -> list[list[str]]:
    """A line a task and method, in the order in which they were begun; of several backbones each has its own.

    Args:
        runs: the runs; those that are not finished are left out. None of them has a line where no two methods can be compared.
    """
    ordered = sorted(runs, key=lambda run: (str(run.about.get("time", "")), str(run.folder)))
    groups: dict[tuple[str, str], dict[str, list[Snapshot]]] = {}
    models = {run.named("model") for run in runs}
    for run in ordered:
        if run.state == FINISHED and run.score is not None:
            label = run.task if len(models) == 1 else f"{run.task} {run.named('model')}"
            groups.setdefault((label, run.metric), {}).setdefault(run.named("adapter"), []).append(run)
    if all(len(methods) < 2 for methods in groups.values()):
        return []
    table = []
    for (label, _), methods in groups.items():
        full = _mean(methods[FULL]) if FULL in methods else 0.0
        table += [_line(label, method, own, full) for method, own in methods.items()]
    return table


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in table)])


def _mean(runs: Sequence[Snapshot]) -> float:
    return statistics.mean(run.score or 0.0 for run in runs)


def _line(task: str, method: str, runs: Sequence[Snapshot], full: float) -> list[str]:
    """One line; costs are the last run's, `full` is full fine-tuning's score."""
    score, last = _mean(runs), runs[-1]
    share, speed = last.number("parameters", "percent"), last.number("speed", "samples_per_s")
    return [
        task,
        method,
        f"{score:.1f}",
        f"{100 * score / full:.1f} %" if full else "-",
        f"{share or 0.0:.2f} %",
        f"{speed:.0f}" if speed else "-",
        f"{last.number('memory', 'peak_mb') or 0.0:.0f}",
        f"{last.number('speed', 'wall_s') or 0.0:.0f}",
    ]
