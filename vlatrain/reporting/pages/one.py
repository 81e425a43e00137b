"""The page of one run: its figures and tables as a template needs them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlatrain.config.keys import leaves
from vlatrain.reporting.pages import figures
from vlatrain.reporting.pages.gallery import Gallery, gallery
from vlatrain.reporting.pages.pictures import pictures_of
from vlatrain.reporting.pages.reading import Snapshot, snapshot
from vlatrain.reporting.pages.thumbnails import Pictures, Thumbnails, colour_of

GROUPS = 30  # groups of a kind in a table
CURVES = {  # what is recorded while a run trains: title, unit, and what turns it into that
    "samples_per_s": ("Speed", "samples/s"),
    "peak_mb": ("Peak memory", "MB"),
    "grad_norm": ("Gradient norm", ""),
}
SKIPPED = ("run", "source", "output", "split", "trainer.workers", "trainer.threads", "logger", "resume", "task.spec")


def content(run: Snapshot, pictures: Pictures | None = None) -> dict[str, Any]:
    """What the template of a run's page shows.

    Args:
        run: the run.
        pictures: finds images that are no files; None: they are looked for.
    """
    notes = [*run.problems]
    if pictures is None:
        pictures, reason = pictures_of(run)
        notes += [f"No images: {reason}"] if reason else []
    thumbnails = Thumbnails()
    own, frozen = run.files.predictions(), run.files.predictions("frozen")
    predicted = gallery(own, thumbnails, pictures, frozen, notes, started=run.started)
    if predicted.total > len(predicted.records):
        shown, total = len(predicted.records), predicted.total
        notes.append(f"{shown:,} of {total:,} predictions are shown: the surest mistakes, and every n-th of the rest")
    if thumbnails.beyond:
        notes.append(
            f"{len(thumbnails.urls):,} images are shown, {thumbnails.beyond:,} are not, to keep the page small"
        )
    if thumbnails.missing:
        notes.append(f"{thumbnails.missing:,} images cannot be read from where they were")
    if not predicted.total:
        notes.append("There are no predictions: the run was not evaluated, or has not come to its end")
    evaluations = [*_evaluations(run)]
    return {
        "run": run,
        "title": " · ".join(run.named(group) for group in ("task", "model", "adapter")),
        "notes": notes,
        "tiles": [*_tiles(run)],
        "scores": [*_scores(run)],
        "curves": [figure for figure in _curves(run) if figure],
        "gallery": predicted,
        "legend": [*legend(run, thumbnails)],
        "json": as_json({**_records(predicted), "thumbs": thumbnails.urls, "sizes": thumbnails.sizes}),
        "confusions": {name: _shaded(*table) for name, table in (predicted.confusions | _choices(run)).items()},
        "groups": [*_groups(run, predicted)],
        "towers": figures.towers(run.metrics.get("towers") or {}),
        "tower_rows": [*_towers(run)],
        "evaluations": evaluations,
        "dropped": _dropped(evaluations),
        "data": [*_data(run)],
        "facts": [*_facts(run)],
        "settings": sorted((key, _plain(value)) for key, value in leaves(run.config).items() if not _described(key)),
    }


def as_json(value: Any) -> Markup:
    """A value as JSON inside a page: nothing in it can end the element that it is in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def number(value: float | None, unit: str = "") -> str:
    """A score as people read it."""
    return "" if value is None else f"{value:,.2f} {unit}".rstrip()


def legend(run: Snapshot, thumbnails: Thumbnails) -> Iterator[tuple[str, str]]:
    """The classes in the masks of a page, each with its colour as CSS writes it."""
    tasks = [run.config.get("task") or {}]
    tasks += (tasks[0].get("subtasks") or {}).values()
    masked = [task for task in tasks if "mask" in ((task.get("spec") or {}).get("fields") or [])]
    names = masked[0].get("classes") or [] if masked else []
    for number in sorted(thumbnails.classes):
        *rgb, opacity = colour_of(number)
        colour = f"rgb({' '.join(map(str, rgb))} / {opacity / 255:.2f})"
        yield (str(names[number]) if number < len(names) else str(number)), colour


def _records(predicted: Gallery) -> dict[str, Any]:
    values = asdict(predicted)
    by = ["this run", *(["frozen model"] if predicted.changed is not None else [])]
    return {name: values[name] for name in ("records", "graded", "most", "confident")} | {"by": by}


def _tiles(run: Snapshot) -> Iterator[tuple[str, str, str]]:
    """What counts, what it is, and what there is to say of it."""
    if run.score is not None:
        beaten, interval = run.beaten(run.metric), (run.metrics.get("intervals") or {}).get(run.metric)
        said = [f"{number(interval[0])} to {number(interval[1])} (95 %)"] if interval else []
        if beaten:
            said.append(f"{'above' if beaten.better else 'not above'} {number(beaten.value)}, {beaten.name}")
        yield number(run.score, run.unit(run.metric)), run.metric.replace("_", " "), "; ".join(said)
    parameters = run.metrics.get("parameters") or {}
    if parameters:
        share = f"of {parameters['total']:,} parameters"
        yield f"{parameters['percent']:.2f} %", "trainable", f"{parameters['trainable']:,} {share}"
    if (speed := run.number("speed", "samples_per_s")) is not None and speed:
        yield f"{speed:,.1f}", "samples/s in training", _seconds(run.number("speed", "wall_s"))
    if (peak := run.number("memory", "peak_mb")) is not None:
        yield f"{peak:,.0f} MB", "peak memory", str((run.metrics.get("machine") or {}).get("device", ""))


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:,.0f} s in all" if seconds < 120 else f"{seconds / 60:,.1f} min in all"


def _scores(run: Snapshot) -> Iterator[dict[str, str | bool]]:
    frozen = (run.metrics.get("frozen") or {}).get("metrics") or {}
    for split in ("", "test"):
        scored = run.metrics.get(split) or {} if split else run.metrics
        values = scored.get("metrics") or {}
        for name in sorted(values, key=lambda name: name != run.metric):
            interval, beaten = (scored.get("intervals") or {}).get(name), run.beaten(name, split)
            ceiling = (scored.get("ceilings") or {}).get(name, 100.0)
            yield {
                "name": f"{split} {name}".strip().replace("_", " "),
                "headline": name == run.metric,
                "value": number(values[name], run.unit(name)),
                "interval": f"{number(interval[0])} to {number(interval[1])}" if interval else "",
                "baseline": f"{number(beaten.value)} {beaten.name}" if beaten else "",
                "low": bool(beaten and not beaten.better),
                "ceiling": number(ceiling) if ceiling < 100 else "",
                "frozen": number(frozen.get(name)) if not split else "",
            }


def _curves(run: Snapshot) -> Iterator[Markup]:
    loss = {"training": series(run, "loss"), "evaluation": series(run, "eval/loss")}
    yield figures.curves("Loss", loss)
    beaten = run.beaten(run.metric)
    levels = {"baseline": beaten.value} if beaten else {}
    frozen = (run.metrics.get("frozen") or {}).get("metrics") or {}
    levels |= {"frozen model": frozen[run.metric]} if run.metric in frozen else {}
    yield figures.curves(run.metric, {run.metric: series(run, f"eval/{run.metric}")}, levels, run.unit(run.metric))
    others = [
        name
        for name in run.metrics.get("metrics") or {}
        if name != run.metric and run.unit(name) == run.unit(run.metric)
    ]
    if others:
        shown = {name: series(run, f"eval/{name}") for name in others[: figures.SERIES]}
        yield figures.curves("Other scores", shown, unit=run.unit(run.metric))
    rates = dict.fromkeys(name for record in run.history for name in record.get("lr") or {})
    values = {
        name: [(record["step"], record["lr"][name]) for record in run.history if name in (record.get("lr") or {})]
        for name in rates
    }
    yield figures.curves("Learning rate", values)
    for key, (title, unit) in CURVES.items():
        yield figures.curves(title, {title: series(run, key)}, unit=unit)


def series(run: Snapshot, key: str) -> list[tuple[float, float]]:
    """A value that is recorded over the steps."""
    return [
        (float(record["step"]), float(record[key]))
        for record in run.history
        if isinstance(record.get(key), (int, float)) and not isinstance(record[key], bool)
    ]


def _shaded(names: Sequence[str], table: Sequence[Sequence[int]]) -> dict[str, Any]:
    lines = [
        (name, [(count, round(100 * count / max(1, sum(line)))) for count in line])
        for name, line in zip(names, table, strict=False)  # none for others, if no reference is another one
    ]
    return {"names": names, "lines": lines}


def _choices(run: Snapshot) -> dict[str, tuple[list[str], list[list[int]]]]:
    """Of a router, how often a run's samples went to which."""
    facts = run.metrics.get("router") or {}
    return {"choice of run": (facts["sources"], facts["confusion"])} if facts else {}


def _groups(run: Snapshot, predicted: Gallery) -> Iterator[dict[str, Any]]:
    """Scores of groups of samples: those of the run's own groups, and mean scores by the data's columns and by reference."""
    own = run.metrics.get("groups") or {}
    for name, groups in own.items():
        scored = {group: about for group, about in groups.items() if len(about) > 1}
        if scored:
            metrics = [key for key in next(iter(scored.values())) if key != "samples"]
            metric = run.metric if run.metric in metrics else metrics[0]
            lines = [(group, about["samples"], about[metric]) for group, about in scored.items() if metric in about]
            yield _group(metric, name, lines)
    for name, means in predicted.means.items():
        if name not in own and name not in ("subtask", "half"):
            yield _group("mean score", name, [(value, *both) for value, both in means.items()])


def _group(metric: str, name: str, lines: Sequence[tuple[str, int, float]]) -> dict[str, Any]:
    most = max([100.0, *(score for *_, score in lines)])
    shown = [
        (group or "(none)", count, number(score), round(100 * score / most, 1))
        for group, count, score in lines[:GROUPS]
    ]
    words = {"reference": "answer or class", "question_words": "words of the question"}
    label = words.get(name.rpartition("/")[2], name.replace("_", " "))
    return {"metric": metric.replace("_", " "), "name": label, "lines": shown, "beyond": len(lines) - len(shown)}


def _towers(run: Snapshot) -> Iterator[tuple[str, str, str]]:
    for tower, about in (run.metrics.get("towers") or {}).items():
        yield tower, f"{about['layers']}", f"{sum(about['trainable'].values()):,}"
    if elsewhere := run.metrics.get("trainable_elsewhere"):
        for group, count in elsewhere.items():
            yield group, "", f"{count:,}"


def _evaluations(run: Snapshot) -> Iterator[dict[str, Any]]:
    """The evaluations afterwards: what was scored, with what, and what came of it."""
    own = leaves(run.config)
    for file in sorted(run.files.evaluations.glob("*/metrics.json")):
        one = snapshot(file.parent) if (file.parent / run.files.config.name).exists() else None
        if one is None or one.score is None:
            continue
        values = leaves(one.config)
        differing = {
            key: values.get(key)
            for key in sorted({*own, *values})
            if own.get(key) != values.get(key) and not key.startswith(SKIPPED) and not _described(key)
        }
        interval = (one.metrics.get("intervals") or {}).get(one.metric)
        yield {
            "name": file.parent.name,
            "samples": f"{one.metrics.get('samples', 0):,} {one.metrics.get('split', '')}",
            "with": ", ".join(f"{key}={_plain(value)}" for key, value in [*differing.items()][:6]),
            "metric": one.metric.replace("_", " "),
            "score": one.score,
            "value": number(one.score, one.unit(one.metric)),
            "interval": f"{number(interval[0])} to {number(interval[1])}" if interval else "",
            "speed": one.number("speed", "samples_per_s"),
            "dropped": (one.config.get("adapter") or {}).get("drop_layers"),
            "data": (one.metrics.get("data") or {}).get(str(one.metrics.get("split")), ""),
        }


def _dropped(evaluations: Sequence[Mapping[str, Any]]) -> Markup:
    """AdapterDrop: what an evaluation without the adapters of the lowest layers gains in speed and loses in score."""
    known = [one for one in evaluations if isinstance(one["dropped"], int) and one["speed"]]
    known = [one for one in known if one["data"] == known[-1]["data"] and one["metric"] == known[-1]["metric"]]
    if len({one["dropped"] for one in known}) < 2:
        return Markup()
    points = [(f"{one['dropped']} dropped", float(one["speed"]), float(one["score"])) for one in known]
    return figures.scatter("AdapterDrop: speed against score", points, ("samples/s in evaluation", known[0]["metric"]))


def _data(run: Snapshot) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The data report, by subtask and split, as names and values."""
    try:
        report = json.loads(run.files.data.read_text(encoding="utf-8"))
        for subtask, about in report["subtasks"].items():
            for split, facts in about["splits"].items():
                values = {key: value for key, value in leaves(facts).items() if not key.startswith("texts")}
                for text in facts.get("texts") or []:
                    tokens = text.get("tokens") or {}
                    cut = f", {text['cut']:.1f} % cut" if text.get("cut") else ""
                    values[f"{text['kind']}, tokens"] = (
                        f"median {tokens.get('median')}, longest {tokens.get('longest')}, limit {text.get('limit')}{cut}"
                    )
                named = [(key.replace(".", " ").replace("_", " "), _plain(value)) for key, value in values.items()]
                yield f"{subtask} {split}".strip(), named
        for warning in report.get("warnings") or []:
            yield "warning", [(str(warning.get("kind", "")), str(warning.get("message", "")))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return


def _facts(run: Snapshot) -> Iterator[tuple[str, str]]:
    """What the figures depend on."""
    training, about = run.metrics.get("training") or {}, run.about
    if about.get("command"):
        yield "command", " ".join(map(str, about["command"]))
    yield "state", run.state_in_words
    if about.get("time"):
        yield "begun", str(about["time"]).replace("T", " ")
    if training:
        yield (
            "steps",
            f"{training.get('steps', 0):,} ({training.get('epochs', 0):.4g} epochs), seed {training.get('seed')}",
        )
        yield (
            "best step",
            f"{training.get('best_step')}, the best of {training.get('evaluations')} evaluations, chosen on the evaluation data",
        )
    for name, group in (("baseline", "baselines"),):
        for baseline, what in (run.metrics.get(group) or {}).items():
            yield f"{name}: {baseline.replace('_', ' ')}", f"{what.get('says', '')} (of {what.get('source', '')})"
    for split, known in (run.metrics.get("data") or {}).items():
        yield f"data, {split}", str(known)
    for name in ("backbone", "backbone_revision", "frozen_hash"):
        if run.metrics.get(name):
            yield name.replace("_", " "), str(run.metrics[name])
    machine = run.metrics.get("machine") or {}
    if machine:
        yield "machine", ", ".join(f"{key} {value}" for key, value in machine.items())
    if versions := run.metrics.get("versions") or about.get("versions"):
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    if about.get("commit"):
        yield "commit", str(about["commit"])
    yield "folder", str(Path(run.folder).absolute())


def _described(key: str) -> bool:
    """Whether a key describes a backbone or a task, rather than choosing something."""
    return key.startswith(
        ("model.tasks", "model.towers", "task.spec", "model.options", "model.image", "model.submodels")
    )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:199]}…"
