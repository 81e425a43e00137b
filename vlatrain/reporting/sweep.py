"""The end of a sweep: one table over its runs, score against speed as bars, and the same as `sweep.json` and, for plots,
`sweep.csv`. A failed run is a row that says why.

Every job leaves its outcome in the sweep's folder, as `jobs/NUMBER.json`, and the table is made of these files: jobs may run in
processes of their own, wherever a launcher puts them."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

FILE, PLAIN, JOBS = "sweep.json", "sweep.csv", "jobs"
BEGUN = "ended without saying why: killed, perhaps for want of memory, or not yet done"  # until a job says otherwise
BAR = 40  # characters of the longest bar


@dataclass
class Outcome:
    """What came of one job.

    Attributes:
        number: its place in the sweep.
        overrides: its Hydra overrides, each with a single value.
        folder: its run folder; None if it never had one.
        metrics: content of its `metrics.json`; empty if it failed.
        failure: why it failed, in one line; empty if it did not.
        seconds: wall time.
        left_out: why task, backbone and method do not fit, so that it was not run; empty if it was.
    """

    number: int
    overrides: list[str] = field(default_factory=list)
    folder: Path | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0
    left_out: str = ""

    @property
    def values(self) -> dict[str, str]:
        """The overrides by key."""
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {key: value for key, _, value in pairs}

    @property
    def metric(self) -> str:
        """Name of the headline metric; empty without one."""
        return str(self.metrics.get("metric") or "")

    @property
    def score(self) -> float | None:
        """The headline metric, in percent."""
        return _number(self.metrics, "metrics", self.metric)

    def save(self, folder: Path) -> None:
        """Write it into the folder of the sweep, whole or not at all."""
        file = folder / JOBS / f"{self.number:04d}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".tmp")
        fresh.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        fresh.replace(file)

    def summary(self, keys: Sequence[str]) -> dict[str, Any]:
        """The row of the table as plain values."""
        return {
            "number": self.number,
            "varied": {key: self.values.get(key) for key in keys},
            "metric": self.metric or None,
            "score": self.score,
            "trainable_percent": _number(self.metrics, "parameters", "percent"),
            "samples_per_s": _number(self.metrics, "speed", "samples_per_s"),
            "peak_mb": _number(self.metrics, "memory", "peak_mb"),
            "seconds": round(self.seconds, 1),
            "folder": str(self.folder) if self.folder else None,
            "failure": self.failure or None,
            "left_out": self.left_out or None,
            "overrides": self.overrides,
        }


def outcomes_in(folder: Path) -> list[Outcome]:
    """What the jobs of a sweep have left in its folder, in their order."""
    read = (json.loads(file.read_text(encoding="utf-8")) for file in (folder / JOBS).glob("*.json"))
    found = [Outcome(**{**values, "folder": values["folder"] and Path(values["folder"])}) for values in read]
    return sorted(found, key=lambda outcome: outcome.number)


def clear(folder: Path) -> None:
    """Remove what the jobs of an earlier sweep have left in a folder."""
    for file in (folder / JOBS).glob("*.json"):
        file.unlink()


def varied_keys(outcomes: Sequence[Outcome]) -> list[str]:
    """The keys that differ between the runs, in the order they were given."""
    keys = list(dict.fromkeys(key for outcome in outcomes for key in outcome.values))
    return [key for key in keys if len({outcome.values.get(key) for outcome in outcomes}) > 1]


def announce(number: int, varied: Sequence[str]) -> None:
    """Head a job's output with what it is."""
    Console().rule(Text(f"run {number}  {' '.join(varied)}"), align="left")


def finish(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write `sweep.json` and `sweep.csv`, and print the table and the chart.

    Args:
        outcomes: the jobs that ran, in order.
        folder: the sweep's folder.
    """
    if not any(outcome.metrics or outcome.failure or outcome.left_out for outcome in outcomes):
        return
    keys = varied_keys(outcomes)
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    rows = [outcome.summary(keys) for outcome in outcomes]
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_csv(folder / PLAIN, rows)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(outcomes))
    if (bars := chart(outcomes)) is not None:
        console.print(bars)
    failed = sum(bool(outcome.failure) for outcome in outcomes)
    run = [outcome for outcome in outcomes if not outcome.left_out]
    told = f"{failed} of {len(run)} runs failed" if failed else f"{len(run)} runs"
    told += f", {len(outcomes) - len(run)} left out" if len(run) < len(outcomes) else ""
    console.print(f"{told}; the table as JSON: {path}, as CSV: {folder / PLAIN}", highlight=False)


def table(outcomes: Sequence[Outcome]) -> Table:
    """The table: what varied, the metric, trainable share, speed, peak memory, and the run's name or why it failed."""
    keys = varied_keys(outcomes)
    names = {outcome.metric for outcome in outcomes if outcome.metric}
    same = len(names) <= 1
    made = Table(title="sweep", title_justify="left")
    for heading in ("#", *keys, (names or {"score"}).pop() if same else "score", "trainable %", "samples/s", "peak MB"):
        made.add_column(heading, justify="left" if heading in keys else "right", no_wrap=heading not in keys)
    made.add_column("run", overflow="fold")
    for outcome in outcomes:
        row = outcome.summary(keys)
        score = _shown(outcome.score, 2)
        last = Text(f"failed: {outcome.failure}", style="red") if outcome.failure else Text(_name(outcome.folder))
        last = Text(f"left out: {outcome.left_out}", style="dim") if outcome.left_out else last
        made.add_row(
            str(outcome.number),
            *(Text(str(outcome.values.get(key, ""))) for key in keys),
            score if same or not outcome.metric else f"{outcome.metric} {score}",
            _shown(row["trainable_percent"], 3),
            _shown(row["samples_per_s"] or None, 1),
            _shown(row["peak_mb"], 0),
            last,
        )
    return made


def chart(outcomes: Sequence[Outcome]) -> Table | None:
    """Score and speed of each run as bars from zero, for those that have both; None for fewer than two.

    Scores are compared within a metric, so there is none for several metrics either.
    """
    keys = varied_keys(outcomes)
    known = [(outcome, outcome.summary(keys)) for outcome in outcomes if outcome.metric]
    known = [(outcome, row) for outcome, row in known if row["score"] is not None and row["samples_per_s"]]
    if len(known) < 2 or len({outcome.metric for outcome, _ in known}) > 1:
        return None
    made = Table(*keys, known[0][0].metric, "samples/s", box=None, header_style="dim")
    most = [max(row[name] for _, row in known) or 1.0 for name in ("score", "samples_per_s")]
    for outcome, row in known:
        score, speed = row["score"], row["samples_per_s"]
        bars = [f"{_bar(score / most[0])} {score:.2f}", f"{_bar(speed / most[1])} {speed:,.1f}"]
        made.add_row(*(Text(str(outcome.values.get(key, ""))) for key in keys), *bars)
    return made


def _bar(share: float) -> str:
    return "\u2588" * max(0, round(BAR * share))


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows of `sweep.json` with a column for each key that varied."""
    with path.open("w", encoding="utf-8", newline="") as file:
        flat = [{**row["varied"], **{k: v for k, v in row.items() if k not in ("varied", "overrides")}} for row in rows]
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)


def _name(folder: Path | None) -> str:
    return folder.name if folder else ""


def _number(metrics: Mapping[str, Any], part: str, key: str) -> float | None:
    inner = metrics.get(part)
    value = inner.get(key) if isinstance(inner, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else None


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
