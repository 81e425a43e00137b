"""Training a router (`adapter=router`): its controller is trained, its choices and answers are scored, and it is saved as a run."""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlatrain.config import TrainConfig
from vlatrain.config.files import write_json
from vlatrain.config.joint import subtasks
from vlatrain.data.blank import as_seen
from vlatrain.data.lazy import by_subtask
from vlatrain.data.sample import Sample, fingerprint
from vlatrain.data.subtasks import load_run
from vlatrain.reporting.card import Place, write_card
from vlatrain.reporting.console import BRIEF, Console, RichConsole
from vlatrain.reporting.pages import report_at_end
from vlatrain.reporting.records import TRAINING, scored_record
from vlatrain.reporting.scores import marks, score_table, shown_score
from vlatrain.reporting.summary import asking, show_files
from vlatrain.reporting.trackers import Trackers, outcome_of, tables_of
from vlatrain.runs import RunFolder, refuse_changed_file, save_config, versions
from vlatrain.training.batches import SharedBatches
from vlatrain.training.journal import Journal
from vlatrain.training.precision import choose_device, choose_precision, own, peak_memory_mb
from vlatrain.training.processes import count
from vlatrain.training.routing.router import Router
from vlatrain.training.routing.scores import Scores, score
from vlatrain.verbs.predictions import write_predictions

log = logging.getLogger("vlatrain")


def train_router(files: RunFolder, config: TrainConfig, console: Console, main: bool, trackers: Trackers) -> None:
    """Train a router, score it, and write everything into its run folder.

    Args:
        files: the folder.
        config: the configuration, with what the runs say.
        console: where progress is shown.
        main: whether this is the process that writes.
        trackers: makes the trackers that are asked for.

    Raises:
        UserError: data, weights or runs that cannot be had.
    """
    started, folder = time.perf_counter(), files.path
    log.info("Run folder: %s", folder)
    has_test = all(subtask.data.test for subtask in subtasks(config).values())
    samples = as_seen(load_run(config, ["train", "eval", *(["test"] if has_test else [])]), config)
    data = {split: fingerprint(found) for split, found in samples.items()}
    log.info("Data: %s", ", ".join(f"{len(found):,} {split} samples" for split, found in samples.items()))
    device = own(choose_device(config.trainer.device))
    precision = choose_precision(config.trainer.precision, device)
    router = Router(config, device, precision)
    _announce(router)
    if main:
        files.unseal()
        save_config(config, folder)
        files.note_start(data)
    most = router.options.samples
    learned = {name: _drawn(by_subtask(samples, name)["train"], most, f"{config.seed}/{name}") for name in router.names}
    trained_in = time.perf_counter()
    about = router.train(learned, console)
    trained_in = time.perf_counter() - trained_in
    log.info(
        "adapter.router=%s: %s parameters on %s features of %s samples, in %.0f s",
        router.options.router, f"{about['parameters']:,}", f"{about['features']:,}",
        f"{sum(about['samples'].values()):,}", trained_in,
    )  # fmt: skip
    if main:
        router.save(files.adapter)
    constants = {route.name: _constants(route.folder) for route in router.routes}
    splits = {split: scored(router, samples[split], console) for split in samples if split != "train"}
    records = {split: _record(config, found, samples[split], constants) for split, found in splits.items()}
    total = sum(parameter.numel() for parameter in router.reader.backbone.model.parameters())
    metrics = {
        "task": config.task.name,
        "model": config.model.name,
        "adapter": config.adapter.name,
        "metric": config.task.metric,
        **records.pop("eval"),
        **records,
        "parameters": {
            "trainable": about["parameters"],
            "total": total + about["parameters"],
            "percent": 100 * about["parameters"] / (total + about["parameters"]),
        },
        "speed": {"samples_per_s": 0.0, "wall_s": time.perf_counter() - started, "train_s": trained_in},
        "memory": {"peak_mb": peak_memory_mb(device)},
        "training": {**about, "seed": config.seed},
        "machine": {"device": device.type, "precision": precision, "processes": count()},
        "backbone": router.reader.backbone.source,
        "versions": versions(),
        "data": data,
        "cache": {"where": "off"},
    }
    if not main:
        return
    predicted = {split: found.evaluation.predictions for split, found in splits.items()}
    outcome = outcome_of(metrics, tables_of(config.logger, predicted, samples), files.adapter)
    for sink in trackers(config):
        sink.begin(0)
        sink.write({"step": 0, **{f"eval/{name}": value for name, value in metrics["metrics"].items()}})
        sink.report(outcome)
    for split, found in splits.items():
        write_predictions(files, split, found.evaluation, samples[split], config)
        for mark in marks(config, metrics if split == "eval" else metrics[split], "" if split == "eval" else split):
            log.warning(mark)
    write_json(files.constants, constants)
    write_card(files.adapter, config, metrics, Place(str(folder), str(files.adapter)))
    write_json(files.metrics, metrics)  # all but last: a folder with metrics.json is a finished run
    files.seal()
    if config.run.report == "auto" and not BRIEF.get():
        report_at_end(folder, samples["eval"])
    show_router(config, folder, metrics)


def scored(router: Router, samples: Sequence[Sample], console: Console, journal: Journal | None = None) -> Scores:
    """What a router scores on samples; each of several processes computes all of it."""
    loaders = router.config.trainer.loaders
    batches = SharedBatches(router.device, router.size, loaders, console, local=True, journal=journal)
    with router.computing():
        return score(router, samples, batches, console)


def routing_rows(config: TrainConfig, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a table says of a router: its choices, and what its scores are compared with.

    Args:
        config: its configuration.
        metrics: the content of a `metrics.json`.
    """
    facts, names = metrics["router"], metrics["settings"]["mean_of"]

    def headlines(values: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {shown_score(config, name, values[name])}" for name in names if name in values)

    yield "right choices", f"{facts['accuracy']:.2f} %"
    yield "of the oracle's scores", f"{facts['of_oracle']:.2f} %"
    yield "oracle", headlines(facts["oracle"])
    for name, found in facts["singles"].items():
        yield f"{name} on everything", headlines(found)
    if "image_alone" in facts:
        alone = facts["image_alone"]
        yield (
            "without a request",
            f"{alone['accuracy']:.2f} % right choices, {alone['of_oracle']:.2f} % of the oracle's scores",
        )
    if facts["abstained"]:
        yield "left to the frozen model", f"{facts['abstained']:,} of {sum(map(sum, facts['confusion'])):,}"
    extra, again = facts["extra_time"], facts["reads"]["again_for"]
    told = f" ({', '.join(again)}: read a second time)" if again else ""
    yield "extra time", f"{extra['ms_extra']:.2f} ms a sample, {extra['percent_extra']:.1f} %{told}"
    yield "extra CPU time", f"{extra['cpu_ms_extra']:.2f} ms a sample, {extra['cpu_percent_extra']:.1f} %"


def show_router(config: TrainConfig, folder: Path, metrics: Mapping[str, Any]) -> None:
    """Print a trained router; of a sweep's job nothing."""
    if BRIEF.get():
        return
    console = RichConsole(file=sys.stdout)
    table = score_table(config, metrics, f"adapter=router · {config.model.name} · {config.adapter.router}")
    for row in routing_rows(config, metrics):
        table.add_row(*row)
    table.add_row(
        "time", f"{metrics['speed']['wall_s']:,.0f} s, of which training {metrics['speed']['train_s']:,.0f} s"
    )
    console.print(table)
    show_files(folder, console)
    console.print("Next:", *(f"  {line}" for line in asking(config, folder)), sep="\n", markup=False, soft_wrap=True)


def _announce(router: Router) -> None:
    config = router.config
    log.info("Backbone: %s, %s", config.model.name, router.reader.backbone.source)
    passes = ["+".join(host.adapters) for host in router.hosts]
    log.info("Runs: %s; in one pass: %s", ", ".join(router.names), ", ".join(passes))
    layers = f"{router.reader.tower}.0-{router.reader.layers - 1}"
    again = router.reads_again
    told = (
        f"; read a second time for {', '.join(again)}, whose adapters begin before"
        if again
        else ", from where all runs go on"
    )
    log.info("It reads %s of the frozen backbone%s", layers, told)


def _drawn(samples: Sequence[Sample], most: int, seed: str) -> list[Sample]:
    places = range(len(samples))
    if len(samples) > most:
        places = sorted(random.Random(seed).sample(places, most))  # type: ignore[assignment]
    return [samples[place] for place in places]


def _constants(run: Path) -> dict[str, Any]:
    """What baselines say by a run's training data; nothing, if it keeps none."""
    refuse_changed_file(RunFolder(run).constants)
    with suppress(OSError, ValueError):
        return dict(json.loads(RunFolder(run).constants.read_text(encoding="utf-8")))
    return {}


def _record(
    config: TrainConfig, scores: Scores, samples: Sequence[Sample], constants: Mapping[str, Any]
) -> dict[str, Any]:
    yardsticks = scores.task.yardsticks(samples, constants)
    return {**scored_record(config, scores.evaluation, yardsticks, TRAINING), "router": scores.facts}
