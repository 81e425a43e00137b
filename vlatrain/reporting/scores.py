"""Scores and what they are compared with, as people see them. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Column, Table

from vlatrain.config import TrainConfig
from vlatrain.config.joint import scores as score_specs
from vlatrain.runs.baselines import beside_baseline

SHOWN = 6  # groups of a kind that are shown; `metrics.json` has all


def marks(config: TrainConfig, scored: Mapping[str, Any], split: str = "") -> list[str]:
    """Of the headline scores, of all subtasks, those that are no better than their baseline, a sentence each.

    Args:
        config: the run's configuration.
        scored: the content of a `metrics.json`, or what it holds for another split.
        split: the name of that split.
    """
    known = score_specs(config.task)
    said = []
    for name in [config.task.metric, *(scored.get("settings") or {}).get("mean_of", [])]:
        beaten = beside_baseline(scored, name, known[name].higher_is_better if name in known else True)
        if beaten is not None and not beaten.better:
            score, base = (shown_score(config, name, value) for value in (scored["metrics"][name], beaten.value))
            label = f"{split} {name}".strip()
            said.append(f"{label} {score} is not above its baseline, {base} ({beaten.name}: {beaten.says})")
    return said


def result_line(config: TrainConfig, metrics: Mapping[str, Any]) -> str:
    """The headline score with its interval, and what it beat or did not; empty if there is none."""
    name = str(metrics.get("metric", ""))
    if name not in (metrics.get("metrics") or {}):
        return ""
    known = score_specs(config.task)
    beaten = beside_baseline(metrics, name, known[name].higher_is_better if name in known else True)
    said = f"{name.replace('_', ' ')} {shown_score(config, name, metrics['metrics'][name])}"
    if beaten is None:
        return said
    which = f"{shown_score(config, name, beaten.value)} ({beaten.name})"
    return f"{said}, {'better' if beaten.better else 'no better'} than {which}"


def score_table(config: TrainConfig, metrics: Mapping[str, Any], title: str) -> Table:
    """The scores as a table with what they are compared with, the headline metric first, those of the test data last.

    Args:
        config: the run's configuration.
        metrics: the content of a `metrics.json`.
        title: the table's.
    """
    splits = [(split, metrics.get(split, {}) if split else metrics) for split in ("", "test")]
    baselines = any(found.get("baselines") for _, found in splits)
    frozen = (metrics.get("frozen") or {}).get("metrics", {})
    table = Table(
        Column("what", no_wrap=True),
        "value",
        *(["baseline"] if baselines else []),
        *(["frozen model"] if frozen else []),
        title=title,
        title_justify="left",
    )
    for split, found in splits:
        for name in _ordered(found, metrics["metric"]):
            label = f"{split} {name}".strip()
            cells = [f"[bold]{label}[/]" if name == metrics["metric"] else label, _value(config, found, name, metrics)]
            if baselines:
                cells.append(_baseline(config, found, name))
            if frozen and not split and name in frozen:
                cells.append(shown_score(config, name, frozen[name]))
            table.add_row(*cells)
    if "intervals" in metrics:
        table.caption = "in brackets: 95 % bootstrap interval over the evaluated samples"
        table.caption_justify = "left"
    return table


def group_rows(config: TrainConfig, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A row for each way in which the evaluated samples are grouped: the largest groups with their score and size."""
    for name, groups in (metrics.get("groups") or {}).items():
        scored = [(group, own) for group, own in groups.items() if len(own) > 1]
        if not scored:
            continue
        preferred = metrics["metric"]
        metric = preferred if preferred in scored[0][1] else next(key for key in scored[0][1] if key != "samples")
        shown = [
            f"{group or '(none)'} {shown_score(config, metric, own[metric])} of {own['samples']:,}"
            for group, own in scored[:SHOWN]
            if metric in own
        ]
        more = f", {len(groups) - SHOWN} more in metrics.json" if len(groups) > SHOWN else ""
        yield f"{metric} by {name.rpartition('/')[2]}", ", ".join(shown) + more


def shown_score(config: TrainConfig, name: str, value: float) -> str:
    """A score with its unit."""
    known = score_specs(config.task)
    return f"{value:.2f} {known[name].unit}".rstrip() if name in known else f"{value:.2f}"


def headline(config: TrainConfig, metrics: Mapping[str, Any]) -> str:
    """The headline score with name and unit, and whether it is no better than its baseline; empty if there is none."""
    name = str(metrics.get("metric", ""))
    if name not in (metrics.get("metrics") or {}):
        return ""
    beaten = beside_baseline(metrics, name)
    low = f" (not above its baseline {beaten.value:.2f})" if beaten and not beaten.better else ""
    return f"{name} {shown_score(config, name, metrics['metrics'][name])}{low}"


def _ordered(scored: Mapping[str, Any], headline: str) -> Sequence[str]:
    return sorted(scored.get("metrics") or {}, key=lambda name: name != headline)


def _value(config: TrainConfig, scored: Mapping[str, Any], name: str, metrics: Mapping[str, Any]) -> str:
    shown = shown_score(config, name, scored["metrics"][name])
    ends = (scored.get("intervals") or {}).get(name)
    if ends and name == metrics["metric"]:
        shown += f" \\[{ends[0]:.2f} to {ends[1]:.2f}]"
    most = (scored.get("ceilings") or {}).get(name, 100.0)
    return shown + (f" of at most {shown_score(config, name, most)}" if most < 100 else "")


def _baseline(config: TrainConfig, scored: Mapping[str, Any], name: str) -> str:
    known = score_specs(config.task)
    higher = known[name].higher_is_better if name in known else True
    beaten = beside_baseline(scored, name, higher)
    if beaten is None:
        return ""
    low = "" if beaten.better else f": not {'above' if higher else 'below'} it"
    return f"{shown_score(config, name, beaten.value)} {beaten.name}{low}"
