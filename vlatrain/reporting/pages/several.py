"""The page of several runs: those of a list, of a sweep or of a folder, side by side."""

from __future__ import annotations

import base64
import csv
import io
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlatrain.config.keys import leaves
from vlatrain.reporting.pages import figures
from vlatrain.reporting.pages.gallery import disagreements, gallery
from vlatrain.reporting.pages.methods import HEAD, methods_table
from vlatrain.reporting.pages.one import as_json, legend, number, series
from vlatrain.reporting.pages.pictures import pictures_of
from vlatrain.reporting.pages.reading import FINISHED, Selection, Snapshot
from vlatrain.reporting.pages.thumbnails import Thumbnails

COSTS = {  # what a run costs: where `metrics.json` has it, and its name
    "trainable share": ("parameters", "percent", "trainable %"),
    "time": ("speed", "wall_s", "seconds"),
    "memory": ("memory", "peak_mb", "peak MB"),
}
GROUPS = ("task", "model", "adapter", "data")
UNVARIED = ("run.", "hydra", "resume", "logger", "data.save_images")  # overrides that change nothing of a run's score
SEED = "seed"
STRIPS, COMPARED = 8, 6  # keys that are shown against the score, and runs whose samples are compared


def content(selection: Selection, output: Path) -> dict[str, Any]:
    """What the template of several runs shows.

    Args:
        selection: the runs.
        output: the page's file: links in it are from its folder.
    """
    runs = selection.runs
    varied = varied_keys(runs)
    named = {id(run): f"#{place}" for place, run in enumerate(runs, 1)}
    notes = [f"{named[id(run)]}: {problem}" for run in runs for problem in run.problems]
    if selection.beyond:
        notes.append(f"{selection.beyond:,} older runs of the folder were not read")
    thumbnails = Thumbnails()
    groups = [_group(own, varied, named, thumbnails, notes) for own in comparable(runs)]
    if thumbnails.beyond:
        notes.append(
            f"{len(thumbnails.urls):,} images are shown, {thumbnails.beyond:,} are not, to keep the page small"
        )
    methods = methods_table(runs)
    return {
        "title": f"{len(runs)} runs",
        "notes": notes,
        "varied": varied,
        "runs": [_line(run, named[id(run)], varied, output) for run in runs],
        "states": _states(runs),
        "failures": selection.failures,
        "groups": groups,
        "methods": {"head": HEAD, "lines": methods} if methods else None,
        "csv": _csv(runs, varied),
        "json": as_json(
            {
                "galleries": [group["disagreements"] for group in groups],
                "thumbs": thumbnails.urls,
                "sizes": thumbnails.sizes,
            }
        ),
    }


def comparable(runs: Sequence[Snapshot]) -> list[list[Snapshot]]:
    """The finished runs whose scores are of one kind, by task and headline metric."""
    groups: dict[tuple[str, str], list[Snapshot]] = {}
    for run in runs:
        if run.state == FINISHED and run.score is not None:
            groups.setdefault((run.task, run.metric), []).append(run)
    return [*groups.values()]


def varied_keys(runs: Sequence[Snapshot]) -> list[str]:
    """What differs between the runs, of what was chosen on their command lines, and of the groups."""
    typed = dict.fromkeys(GROUPS) | {
        str(override).lstrip("+~").partition("=")[0]: None
        for run in runs
        for override in run.about.get("overrides") or []
    }
    keys = [key for key in typed if not key.startswith(UNVARIED)]
    return [key for key in keys if len({value_of(run, key) for run in runs}) > 1]


def value_of(run: Snapshot, key: str) -> str:
    """What a run has for a key, or for a group."""
    if "/" in key:  # a group inside a group, which the configuration has under other names
        typed = (str(override).lstrip("+").partition("=") for override in run.about.get("overrides") or [])
        return next((value for name, _, value in typed if name == key), "")
    if isinstance(run.config.get(key), Mapping):
        return run.named(key)
    value: Any = run.config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return ",".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def front(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """The places of the points that no other beats: none costs as little or less and scores as well or better.

    Args:
        points: cost and score of each.
        higher_is_better: whether more of the score is better; less of the cost always is.
    """
    sign = 1 if higher_is_better else -1

    def beats(one: tuple[float, float], another: tuple[float, float]) -> bool:
        better = one[0] <= another[0] and sign * one[1] >= sign * another[1]
        return better and one != another

    return [place for place, point in enumerate(points) if not any(beats(other, point) for other in points)]


def over_seeds(runs: Sequence[Snapshot], varied: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Of runs that differ in their seeds alone the mean score and its deviation (that of a sample, n - 1)."""
    if SEED not in varied:
        return
    others = [key for key in varied if key != SEED]
    groups: dict[tuple[str, ...], list[Snapshot]] = {}
    for run in runs:
        groups.setdefault(tuple(value_of(run, key) for key in others), []).append(run)
    for values, own in groups.items():
        scores = [run.score for run in own if run.score is not None]
        if len(scores) > 1:
            yield {
                "what": ", ".join(f"{key}={value}" for key, value in zip(others, values, strict=True) if value)
                or "all",
                "mean": number(statistics.fmean(scores), own[0].unit(own[0].metric)),
                "deviation": number(statistics.stdev(scores)),
                "runs": len(scores),
            }


def _group(
    runs: list[Snapshot],
    varied: Sequence[str],
    named: Mapping[int, str],
    thumbnails: Thumbnails,
    notes: list[str],
) -> dict[str, Any]:
    """The plots of runs whose scores can be compared."""
    first, metric = runs[0], runs[0].metric
    higher, unit = first.higher_is_better(metric), first.unit(metric)
    label = f"{metric} {unit}".strip().replace("_", " ")
    ranked = sorted(runs, key=lambda run: (-1 if higher else 1) * (run.score or 0.0))
    shown = ranked[: figures.MOST_SERIES]
    if len(ranked) > len(shown):
        notes.append(f"{first.task}: the curves are of the {len(shown)} best of {len(ranked)} runs")
    several = len(runs) > 1
    return {
        "name": f"{first.task}: {metric}".replace("_", " "),
        "best": f"{named[id(ranked[0])]} is best: {number(ranked[0].score, unit)}" if several else "",
        "fronts": [*_fronts(runs, named, label, higher)] if several else [],
        "curves": [
            figures.curves(f"{first.task}: {title}", {named[id(run)]: series(run, key) for run in shown}, unit=own)
            for title, key, own in ((metric, f"eval/{metric}", unit), ("training loss", "loss", ""))
        ]
        if several
        else [],
        "strips": [*_strips(runs, varied, label)],
        "seeds": [*over_seeds(runs, varied)],
        "disagreements": _disagreements(ranked, named, thumbnails),
    }


def _fronts(runs: Sequence[Snapshot], named: Mapping[int, str], label: str, higher: bool) -> Iterator[Markup]:
    for cost, (group, key, heading) in COSTS.items():
        known = [(named[id(run)], value, run.score) for run in runs if (value := run.number(group, key)) is not None]
        points = [(name, value, score) for name, value, score in known if score is not None]
        if len(points) > 1:
            best = front([point[1:] for point in points], higher)
            spread = max(value for _, value, _ in points) > 10 * min(value for _, value, _ in points)
            title = f"{runs[0].task}: score against {cost}"
            yield figures.scatter(title, points, (heading, label), best, logarithmic=spread)


def _strips(runs: Sequence[Snapshot], varied: Sequence[str], label: str) -> Iterator[Markup]:
    for key in [key for key in varied if key != "task"][:STRIPS]:
        points = [(value_of(run, key), run.score or 0.0) for run in runs]
        if len({value for value, _ in points}) > 1:
            yield figures.strip(f"{runs[0].task}: {runs[0].metric} by {key}", points, (key, label))


def _disagreements(
    ranked: Sequence[Snapshot], named: Mapping[int, str], thumbnails: Thumbnails
) -> dict[str, Any] | None:
    """The samples on which the best runs on the same data disagree; None where there are not two of them."""
    data = [(run.metrics.get("data") or {}).get("eval") for run in ranked]
    known = [
        run
        for run, own in zip(ranked, data, strict=True)
        if own and own == data[0] and run.files.predictions().exists()
    ]
    if len(known) < 2:
        return None
    known = known[:COMPARED]
    files = [run.files.predictions() for run in known]
    records, differing, common = disagreements(files, thumbnails, pictures_of(known[0])[0], started=known[0].started)
    counted = gallery(files[0], Thumbnails(most=0), most=1)
    return {
        "records": records,
        "legend": [*legend(known[0], thumbnails)],
        "by": [named[id(run)] for run in known],
        "graded": counted.graded,
        "most": counted.most,
        "confident": counted.confident,
        "said": f"The {len(known)} best runs disagree on {differing:,} of {common:,} samples"
        + (f"; the {len(records):,} widest apart are shown" if len(records) < differing else ""),
    }


def _line(run: Snapshot, name: str, varied: Sequence[str], output: Path) -> dict[str, Any]:
    beaten = run.beaten(run.metric)
    page = run.folder / "report.html"
    link = os.path.relpath(page, output.parent) if page.exists() and page.absolute() != output.absolute() else ""
    return {
        "name": name,
        "state": run.state_in_words,
        "values": [value_of(run, key) for key in varied],
        "metric": run.metric.replace("_", " "),
        "score": run.score,
        "shown": number(run.score, run.unit(run.metric)),
        "baseline": number(beaten.value) if beaten else "",
        "low": bool(beaten and not beaten.better),
        "costs": [run.number(*cost[:2]) for cost in COSTS.values()],
        "speed": run.number("speed", "samples_per_s") or None,
        "megabytes": run.bytes / 1e6,
        "days": run.days,
        "age": _age(run.days),
        "folder": str(run.folder),
        "link": Path(link).as_posix() if link else "",
    }


def _age(days: float) -> str:
    for size, name in ((1.0, "days"), (1 / 24, "h"), (1 / 1440, "min")):
        if days >= 2 * size:
            return f"{days / size:.0f} {name}"
    return "now"


def _states(runs: Sequence[Snapshot]) -> str:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.state] = counts.get(run.state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _csv(runs: Sequence[Snapshot], varied: Sequence[str]) -> str:
    """Every metric of every run, as the address of a file to be saved."""
    table = []
    for run in runs:
        line: dict[str, Any] = {"run": str(run.folder), "state": run.state_in_words}
        line |= {key: value_of(run, key) for key in dict.fromkeys([*GROUPS, *varied, SEED])}
        line |= {"metric": run.metric, "score": run.score}
        for group in ("metrics", "parameters", "speed", "memory", "training"):
            line |= {f"{group}.{key}": value for key, value in leaves(run.metrics.get(group) or {}).items()}
        test = (run.metrics.get("test") or {}).get("metrics") or {}
        table.append(line | {f"test.{key}": value for key, value in test.items()})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in table for key in line)))
    writer.writeheader()
    writer.writerows(table)
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.getvalue().encode()).decode()
