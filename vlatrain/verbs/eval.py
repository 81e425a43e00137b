"""`vlatrain eval`: score a finished run again, on its own or other data, with its own or other settings."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from vlatrain.config import EvalConfig, UserError
from vlatrain.config.files import write_json
from vlatrain.config.methods import ROUTER
from vlatrain.data.blank import as_seen
from vlatrain.data.sample import Sample, fingerprint
from vlatrain.data.subtasks import load_run
from vlatrain.reporting.console import BRIEF, Console, RichConsole, logged, print_sentence
from vlatrain.reporting.records import ITSELF, TRAINING, scored_record
from vlatrain.reporting.scores import group_rows, marks, result_line, score_table
from vlatrain.reporting.trackers import Outcome, add_to_run, tables_of
from vlatrain.runs import COMMAND, Run, RunFolder, refuse_changed_file, save_config, versions
from vlatrain.tasks import Evaluation, Task
from vlatrain.training.journal import BEGUN_ANEW, ENDING, Journal, identity, stopped
from vlatrain.training.out_of_memory import naming_room
from vlatrain.training.precision import choose_device, choose_precision, join_processes, own
from vlatrain.training.prefix_cache.compute import cache_prefix
from vlatrain.training.processes import count, from_main, rank, together
from vlatrain.training.routing.router import Router
from vlatrain.training.setup import load_setup, scored
from vlatrain.training.signals import ending, named
from vlatrain.training.stopwatch import Stopwatch
from vlatrain.training.workers import choose_workers
from vlatrain.verbs.predictions import write_predictions
from vlatrain.verbs.route import routing_rows
from vlatrain.verbs.route import scored as scored_router

log = logging.getLogger("vlatrain")


def evaluate(config: EvalConfig) -> Run:
    """Score a finished run; write its configuration, scores and predictions into a folder of its own. Processes share the work.

    Args:
        config: the run's configuration with what is to differ.

    Raises:
        UserError: data, weights or an adapter that cannot be had.
    """
    try:
        with ending(*named(config.trainer.signal)):
            join_processes(config.trainer)
            with together(), naming_room(config):
                return _evaluate(config)
    except KeyboardInterrupt as error:  # before there was anything to keep
        raise stopped(error, BEGUN_ANEW) from error


def _evaluate(config: EvalConfig) -> Run:
    main = rank() == 0
    run = Path(config.source)
    chosen = RunFolder(Path(config.output)) if config.output else None
    if chosen is not None and chosen.metrics.exists():
        raise UserError(f"output={chosen.path}: holds an evaluation already; choose another folder")
    device = own(choose_device(config.trainer.device))
    precision = choose_precision(config.trainer.precision, device)
    console = Console(quiet=not main)
    place = chosen.path / f"evaluation{ENDING}" if chosen else RunFolder(run).evaluations / f"{config.split}{ENDING}"
    with logged(console, RunFolder(run).log if main else None):
        samples = as_seen(load_run(config, [config.split]), config)[config.split]
        log.info("Data: %s %s samples", f"{len(samples):,}", config.split)
        journal = Journal(place, identity("eval", config, run, samples)) if main else Journal(None)
        with journal:
            if journal.described:
                log.info(journal.described)
            watch, started = Stopwatch(device), time.perf_counter()
            if config.adapter.name == ROUTER:
                found = scored_router(Router(config, device, precision, run), samples, console, journal)
                task, evaluation, more = found.task, found.evaluation, {"router": found.facts}
            else:
                task, evaluation, more = *_scored(config, samples, device, precision, console, watch, journal), {}
            # of what was known before, nothing was timed
            pace = 0.0 if journal.known else watch.speed(len(samples))
            speed = {"samples_per_s": pace, "wall_s": time.perf_counter() - started}
            return _written(config, chosen, samples, task, evaluation, {**more, "speed": speed}, (device, precision))


def _written(
    config: EvalConfig,
    chosen: RunFolder | None,
    samples: Sequence[Sample],
    task: Task,
    evaluation: Evaluation,
    more: Mapping[str, Any],
    machine: tuple[torch.device, str],
) -> Run:
    """Write scores and predictions into the folder that was chosen, or a new one, and show them."""
    main, run, (device, precision) = rank() == 0, Path(config.source), machine
    constants = _constants(run)
    yardsticks = task.yardsticks(samples, task.constants(samples) if constants is None else constants)
    record = scored_record(config, evaluation, yardsticks, ITSELF if constants is None else TRAINING)
    metrics: dict[str, Any] = {
        "task": config.task.name,
        "model": config.model.name,
        "adapter": config.adapter.name,
        "run": str(run),
        "split": config.split,
        "samples": len(samples),
        "data": {"name": config.data.name, config.split: fingerprint(samples)},
        "metric": config.task.metric,
        **record,
        **more,
        "machine": {"device": device.type, "precision": precision, "processes": count()},
        "versions": versions(),
    }
    files = chosen or RunFolder(from_main(RunFolder(run).new_evaluation(config.split).path if main else None))
    if main:
        save_config(config, files.path)
        write_predictions(files, "eval", evaluation, samples, config)
        write_json(files.metrics, metrics)
        files.seal()
        add_to_run(config, run, lambda: _outcome(config, metrics, evaluation, samples, files.path.name))
        _show(config, metrics, files.path, [*yardsticks.described, *marks(config, metrics)])
    return Run(files.path)


def _outcome(
    config: EvalConfig, metrics: dict[str, Any], evaluation: Evaluation, samples: Sequence[Sample], name: str
) -> Outcome:
    """What trackers are given of an evaluation, which has a name among those of its run."""
    title = f"evaluations/{name}"
    tables = tables_of(config.logger, {title: evaluation.predictions}, {title: samples})
    return Outcome({title: metrics["metrics"]}, tables)


def _scored(
    config: EvalConfig,
    samples: Sequence[Sample],
    device: torch.device,
    precision: str,
    console: Console,
    watch: Stopwatch,
    journal: Journal,
) -> tuple[Task, Evaluation]:
    """A run's task, and what it scores."""
    setup = load_setup(config, Path(config.source), device, precision, {config.split: samples})
    size = config.trainer.samples_per_evaluation_pass
    workers = choose_workers(config.trainer, setup.task, samples, size, device)
    trainer = replace(config.trainer, workers=workers)
    lent = replace(config, trainer=trainer)
    cache_prefix(setup.backbone, lent, {config.split: samples}, {}, precision, console, COMMAND.get().alike)
    return setup.task, scored(setup, samples, trainer, device, precision, console, watch, journal)


def _constants(run: Path) -> dict[str, Any] | None:
    """What baselines say by the run's training data; None if it keeps none: it was made before, or merged."""
    refuse_changed_file(RunFolder(run).constants)
    with suppress(OSError, ValueError):
        return dict(json.loads(RunFolder(run).constants.read_text(encoding="utf-8")))
    return None


def _show(config: EvalConfig, metrics: dict[str, Any], folder: Path, said: list[str]) -> None:
    table = score_table(config, metrics, f"{metrics['samples']:,} {config.split} samples")
    for row in group_rows(config, metrics):
        table.add_row(*row)
    for row in routing_rows(config, metrics) if "router" in metrics else ():
        table.add_row(*row)
    if metrics["speed"]["samples_per_s"]:
        table.add_row("speed", f"{metrics['speed']['samples_per_s']:,.1f} samples/s")
    if not BRIEF.get():
        out = RichConsole()
        out.print(str(config.source), markup=False, highlight=False, soft_wrap=True)
        if line := result_line(config, metrics):
            print_sentence(line, out, "bold")
        out.print(table)
        for sentence in said:
            print_sentence(sentence, out)
        out.print(Text.assemble("Scores and predictions are in ", (str(folder), "bold")), soft_wrap=True)
