"""The table of methods: by task and method the mean score of its best settings, its share of full fine-tuning, and what it cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from vlatrain.reporting.pages.reading import FINISHED, Snapshot

HEAD = ["task", "method", "metric", "of full", "trainable", "samples/s", "peak MB", "seconds"]
FULL = "full"
UNSETTING = (
    "seed",
    "run",
    "resume",
    "logger",
    "sweep",
)  # of a configuration what two runs of the same settings may have otherwise


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
    for (label, _), every in groups.items():
        methods = {method: _best(own) for method, own in every.items()}
        full = _mean(methods[FULL]) if FULL in methods else 0.0
        table += [_line(label, method, own, full) for method, own in methods.items()]
    return table


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in table)])


def _best(runs: Sequence[Snapshot]) -> list[Snapshot]:
    """Of a method's runs those with the settings whose mean score is the best: what was tried beside them is no seed of theirs."""
    alike: dict[str, list[Snapshot]] = {}
    for run in runs:
        settings = {key: value for key, value in run.config.items() if key not in UNSETTING}
        alike.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    best = max if runs[0].higher_is_better(runs[0].metric) else min
    return best(alike.values(), key=_mean)


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
