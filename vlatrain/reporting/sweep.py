"""The end of a sweep: one table over its runs, score against speed as bars, means over seeds, and the same as `sweep.json` and, for
spreadsheets and plots, `sweep.csv`. A failed run is a row that says why. Before that, a line for each job."""

from __future__ import annotations

import csv
import io
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vlatrain.config.files import write_file, write_json
from vlatrain.reporting.console import RichConsole as Console
from vlatrain.reporting.console import duration, print_sentence
from vlatrain.reporting.fitted import fitted, shortened
from vlatrain.runs.sweep import Outcome, SweepFolder

BAR, WIDE = 40, 120  # characters of the longest bar, and from which width on there is room for it
SEED = "seed"
COSTS = {  # what a run cost: its column and digits
    "trainable_percent": ("trainable %", 3),
    "samples_per_s": ("samples/s", 1),
    "peak_mb": ("peak MB", 0),
}
SHOWN = 5  # of the jobs that were not run


def line(outcome: Outcome, title: str, jobs: int | None, score: str) -> str:
    """What came of a job, as it ends.

    Args:
        outcome: the job's.
        title: what it varies.
        jobs: how many there are; None: that is not known.
        score: its headline metric with name and unit; empty if it has none.
    """
    place = f"[{outcome.number + 1}{f'/{jobs}' if jobs else ''}] {title}".rstrip()
    if outcome.left_out:
        return f"{place}: left out: {outcome.left_out}"
    said = outcome.ending or score
    said += f" (stopped at step {outcome.pruned}: others were better there)" if outcome.pruned is not None else ""
    facts = [said, duration(outcome.seconds), str(outcome.folder or "")]
    return f"{place}: {', '.join(fact for fact in facts if fact)}"


def finish(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write `sweep.json` and `sweep.csv`, and print the table and the chart.

    Args:
        outcomes: the jobs that ran, in order.
        folder: the sweep's folder.
    """
    if not any(outcome.metrics or outcome.failure or outcome.left_out for outcome in outcomes):
        return
    files, keys = SweepFolder(folder), varied_keys(outcomes)
    rows = [_row(outcome, keys) for outcome in outcomes]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(files.table, rows)
    _write_csv(files.plain, [_flat(row) for row in rows])
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
    console.print(table(outcomes, console))
    if (bars := chart(outcomes, BAR if console.width >= WIDE else BAR // 3)) is not None:
        console.print(bars)
    if means := over_seeds(outcomes):
        _write_csv(files.seeds, means)
        console.print(_means(means, console))
    failed = sum(outcome.ending.startswith("failed") for outcome in outcomes)
    run = [outcome for outcome in outcomes if not outcome.left_out]
    told = f"{failed} of {len(run)} runs failed" if failed else f"{len(run)} runs"
    told += f", {len(outcomes) - len(run)} left out" if len(run) < len(outcomes) else ""
    print_sentence(f"{told}; the table as JSON: {files.table}, as CSV: {files.plain}", console)


def not_run(planned: Sequence[Sequence[str]], outcomes: Sequence[Outcome], command: str) -> str:
    """Which jobs of a stopped sweep are still to be run, and how; empty if there are none.

    Args:
        planned: what each job varies, in their order.
        outcomes: what came of those that were begun.
        command: the command that goes on.
    """
    ended = {outcome.number for outcome in outcomes if outcome.done}
    begun = {outcome.number for outcome in outcomes} - ended
    left = [(number, " ".join(job)) for number, job in enumerate(planned) if number not in ended]
    if not left:
        return ""
    named = [f"{job or 'the only one'} (begun)" if number in begun else job for number, job in left]
    more = f"; {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return (
        f"Not run to the end: {len(left)} of {len(planned)} jobs: {'; '.join(named[:SHOWN])}{more}\nTo go on: {command}"
    )


def varied_keys(outcomes: Sequence[Outcome]) -> list[str]:
    """The keys that differ between the runs, in the order they were given."""
    keys = list(dict.fromkeys(key for outcome in outcomes for key in outcome.values))
    return [key for key in keys if len({outcome.values.get(key) for outcome in outcomes}) > 1]


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The run with the best headline metric; None for fewer than two, for several metrics, and for equals."""
    scored = [outcome for outcome in outcomes if outcome.score is not None]
    if len(scored) < 2 or len({outcome.metric for outcome in scored}) > 1:
        return None
    first, second, *_ = sorted(scored, key=lambda outcome: -(outcome.score or 0.0))  # a headline metric is one to raise
    return first if first.score != second.score else None


def table(outcomes: Sequence[Outcome], console: Console) -> Table:
    """The table: what varied, the metric, trainable share, speed, peak memory, and the run's name or its failure."""
    keys, first = varied_keys(outcomes), best(outcomes)
    names = {outcome.metric for outcome in outcomes if outcome.metric}
    same = len(names) <= 1
    score = (names or {"score"}).pop() if same else "score"
    units = {outcome.unit for outcome in outcomes if outcome.metric}
    score = f"{score} {units.pop()}".rstrip() if len(units) == 1 else score

    def scored(outcome: Outcome) -> Text:
        shown = _shown(outcome.score, 2) + ("*" if outcome is first else " " if first and outcome.metric else "")
        return Text(
            shown if same or not outcome.metric else f"{outcome.metric} {shown}", "bold" if outcome is first else ""
        )

    costs = {heading: (name, digits) for name, (heading, digits) in COSTS.items()}
    columns: dict[str, list[str | Text]] = {
        "#": [str(outcome.number) for outcome in outcomes],
        **{key: [Text(str(outcome.values.get(key, ""))) for outcome in outcomes] for key in keys},
        score: [scored(outcome) for outcome in outcomes],
        "baseline": [_shown(outcome.baseline.value if outcome.baseline else None, 2) for outcome in outcomes],
        **{
            heading: [_shown(outcome.figure(name), digits) for outcome in outcomes]
            for heading, (name, digits) in costs.items()
        },
        "run": [_ended(outcome, console.width) for outcome in outcomes],
    }
    return fitted(
        columns,
        console,
        spare=(*reversed(costs), "baseline"),
        wraps=(*keys, "run"),
        right=("#", score, "baseline", *costs),
        title="sweep",
        caption="* the best" if first else None,
    )


def _ended(outcome: Outcome, width: int) -> Text:
    """The name of a run, of which there is as much as there is room for, or what became of it."""
    if outcome.failure:
        return Text(outcome.ending, style="red")
    if outcome.left_out:
        return Text(f"left out: {outcome.left_out}", style="dim")
    last = Text(shortened(outcome.folder.name, max(16, width // 4)) if outcome.folder else "")
    if outcome.pruned is not None:
        last.append(f" (stopped at step {outcome.pruned})", style="dim")
    if outcome.baseline and not outcome.baseline.better:
        last.append(" (not above its baseline)")
    return last


def chart(outcomes: Sequence[Outcome], longest: int = BAR) -> Table | None:
    """Score and speed of each run as bars from zero, for those that have both; None for fewer than two.

    Scores are compared within a metric, so there is none for several metrics either.
    """
    keys = varied_keys(outcomes)
    known = [
        (outcome, outcome.score, speed)
        for outcome in outcomes
        if outcome.score is not None and (speed := outcome.figure("samples_per_s"))
    ]
    if len(known) < 2 or len({outcome.metric for outcome, *_ in known}) > 1:
        return None
    made = Table(*keys, known[0][0].metric, "samples/s", box=None, header_style="dim")
    most_score, most_speed = (max(column) or 1.0 for column in list(zip(*known, strict=True))[1:])
    for outcome, score, speed in known:
        bars = [
            f"{_bar(longest * score / most_score)} {score:.2f}",
            f"{_bar(longest * speed / most_speed)} {speed:,.1f}",
        ]
        made.add_row(*(Text(str(outcome.values.get(key, ""))) for key in keys), *bars)
    return made


def over_seeds(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Of jobs that differ in their seeds alone the mean of each metric and its deviation (that of a sample, n - 1), a row a metric.

    Empty if seeds did not vary, or with them always something else.
    """
    keys = varied_keys(outcomes)
    if SEED not in keys:
        return []
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.metrics:
            others = tuple(outcome.values.get(key, "") for key in keys if key != SEED)
            groups.setdefault(others, []).append(outcome)
    rows = []
    for others, runs in groups.items():
        headline = runs[0].metric
        for name in sorted(runs[0].scores, key=lambda name: name != headline):
            values = [run.scores[name] for run in runs if name in run.scores]
            if len(values) > 1:
                varied = dict(zip((key for key in keys if key != SEED), others, strict=True))
                spread = {"mean": statistics.fmean(values), "deviation": statistics.stdev(values), "runs": len(values)}
                rows.append({**varied, "metric": name, **spread})
    return rows


def _means(means: Sequence[Mapping[str, Any]], console: Console) -> Table:
    *keys, _, _, _ = means[0]
    columns: dict[str, list[str | Text]] = {
        **{key: [Text(str(row[key])) for row in means] for key in keys},
        "mean over seeds": [f"{row['mean']:.2f}" for row in means],
        "deviation": [f"{row['deviation']:.2f}" for row in means],
        "runs": [str(row["runs"]) for row in means],
    }
    return fitted(columns, console, wraps=keys, title="over seeds")


def _row(outcome: Outcome, keys: Sequence[str]) -> dict[str, Any]:
    """A row of the table as plain values."""
    beaten = outcome.baseline
    return {
        "number": outcome.number,
        "varied": {key: outcome.values.get(key) for key in keys},
        "metric": outcome.metric or None,
        "score": outcome.score,
        "unit": outcome.unit,
        "baseline": beaten.value if beaten else None,
        "baseline_name": beaten.name if beaten else None,
        "above_baseline": beaten.better if beaten else None,
        "metrics": outcome.scores,
        "trainable_percent": outcome.figure("trainable_percent"),
        "samples_per_s": outcome.figure("samples_per_s"),
        "peak_mb": outcome.figure("peak_mb"),
        "seconds": round(outcome.seconds, 1),
        "folder": str(outcome.folder) if outcome.folder else None,
        "failure": outcome.failure or None,
        "left_out": outcome.left_out or None,
        "pruned": outcome.pruned,
        "overrides": outcome.overrides,
    }


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with a column for each key that varied and for each metric."""
    plain = {key: value for key, value in row.items() if key not in ("varied", "metrics", "overrides")}
    return {**row["varied"], **plain, **row["metrics"]}


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue())


def _bar(length: float) -> str:
    return "\u2588" * max(0, round(length))


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
