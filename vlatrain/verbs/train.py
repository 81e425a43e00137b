"""`vlatrain train`: one training from its configuration to its run folder."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vlatrain import __version__
from vlatrain.backbones.describe import checkpoints_of, revisions_of
from vlatrain.backbones.reuse import give_back
from vlatrain.config import ModelConfig, TaskConfig, TrainConfig, TrainerConfig, UserError, hub
from vlatrain.config.files import state_of, write_json
from vlatrain.config.joint import subtasks, tasks
from vlatrain.config.memo import keep_result, key_of, load_result
from vlatrain.config.methods import ROUTER
from vlatrain.data.augment import augmented
from vlatrain.data.blank import as_seen
from vlatrain.data.choices import shuffled
from vlatrain.data.facts import SHARED_CAPTIONS
from vlatrain.data.lazy import by_subtask
from vlatrain.data.sample import Sample, fingerprint
from vlatrain.data.subtasks import load_run
from vlatrain.injection.attach import check, group_of, save
from vlatrain.injection.drop import drawn, dropping
from vlatrain.injection.merging.fuse import usage
from vlatrain.reporting.card import Place, write_card
from vlatrain.reporting.console import BRIEF, Console, logged
from vlatrain.reporting.data_report import TEXTS, report_of
from vlatrain.reporting.data_tables import brief_lines
from vlatrain.reporting.pages import report_at_end
from vlatrain.reporting.records import TRAINING, scored_record
from vlatrain.reporting.scores import marks, shown_score
from vlatrain.reporting.summary import show_run
from vlatrain.reporting.trackers import Trackers, outcome_of, tables_of, tracking
from vlatrain.runs import (
    COMMAND,
    Run,
    RunFolder,
    config_text,
    find_config,
    named,
    run_folder,
    save_config,
    steps_in,
    versions,
)
from vlatrain.tasks import Evaluation, check_known, subtasks_of
from vlatrain.tasks.looks import AT_MOST
from vlatrain.tasks.text_facts import text_facts
from vlatrain.tasks.yardsticks import Yardsticks
from vlatrain.training.contrast import passes_together
from vlatrain.training.loop import Loop, Trained
from vlatrain.training.out_of_memory import described
from vlatrain.training.precision import (
    choose_device,
    choose_precision,
    join_processes,
    naming_undetermined,
    reset_process_peak,
    set_torch,
)
from vlatrain.training.prefix_cache.compute import PrefixCache, cache_prefix
from vlatrain.training.processes import count, rank, together
from vlatrain.training.progress import Result
from vlatrain.training.pruning import MedianRule
from vlatrain.training.resized import keep_resized
from vlatrain.training.sample_cache import build_sample_cache
from vlatrain.training.setup import TrainingSetup, keep_processor, new_setup, scored
from vlatrain.training.signals import Interrupted, ending, name_of, signal_of
from vlatrain.training.signals import named as named_signals
from vlatrain.training.sizes import refuse_unfit, sizes_are_chosen
from vlatrain.verbs.predictions import write_predictions
from vlatrain.verbs.route import train_router
from vlatrain.verbs.towers import towers

log = logging.getLogger("vlatrain")

# What may differ where a run is continued: none of it changes what is learned.
FREE = (
    "run", "sweep", "resume", "logger", "task.answer_list", "task.classes",
    "task.subtasks.*.answer_list", "task.subtasks.*.classes",
    "task.spec", "task.subtasks.*.spec",
    "trainer.workers", "trainer.threads", "trainer.log_every", "trainer.keep", "trainer.eval_batch_size",
    "trainer.cache", "trainer.cache_gb", "trainer.eval_loss", "trainer.eval_frozen", "trainer.shard",
    "data.groups", "data.subtasks.*.groups", "data.save_images", "data.subtasks.*.save_images",
    "data.max_megapixels", "data.subtasks.*.max_megapixels",
    "trainer.signal", "trainer.deterministic",
    "trainer.epochs", "trainer.max_steps",  # there may be more: a checkpoint knows how many there were to be
)  # fmt: skip


def train(config: TrainConfig) -> Run:
    """Train, evaluate, and write everything into the run folder.

    Args:
        config: the configuration; a run without a name gets one.

    Raises:
        UserError: data, weights, points or a run folder that cannot be used.
        Interrupted: SIGTERM or Ctrl-C, after saving.
    """
    # a missing GPU, or an option that a method does not take, must not wait for the data
    choose_precision(config.trainer.precision, choose_device(config.trainer.device))
    set_torch(config.trainer)  # before anything computes
    check(config.adapter)
    check_known(config.task)
    if config.adapter.name != ROUTER and sizes_are_chosen(config.model, config.task.name):  # its runs have trained
        refuse_unfit(config)
    join_processes(config.trainer)
    if config.trainer.shard and count() == 1:
        raise UserError(
            "trainer.shard=true: there is a single process, which holds everything; start several with conf/launch/one_node.sh "
            "or torchrun, or leave it out"
        )
    with together():
        if "auto" not in (config.trainer.batch_size, config.trainer.accumulate):  # else the loop finds out
            passes_together(config, count())
        return _train(config if config.run.name else named(config))


def _train(config: TrainConfig) -> Run:
    main = rank() == 0
    files = RunFolder(run_folder(config))
    console, before = Console(quiet=not main), state_of(str(files.adapter))
    try:
        with ending(*named_signals(config.trainer.signal)), files.taken() if main else nullcontext():
            if main:
                _refuse_other_run(config, files)
            config = _continued(config, files)
            with (
                logged(console, files.log if main else None),
                tracking(files.path, main) as trackers,
                naming_undetermined(),
            ):
                _train_into(files, config, console, main, trackers)
    except KeyboardInterrupt as error:
        raise Interrupted(
            signal_of(error), f"Stopped by {name_of(signal_of(error))}{_saved_so_far(files, before)}"
        ) from error
    return Run(files.path)


def _saved_so_far(files: RunFolder, before: list[int] | None) -> str:
    """What is left of a training that a signal ended outside of its steps, and how to go on.

    Args:
        files: its folder.
        before: the state of what was trained when this session began: a run that goes on may have had it, for fewer steps.
    """
    if steps := steps_in(files.checkpoints):
        saved = f"the last one saved is step {max(steps)}"
        if state_of(str(files.adapter)) not in (None, before):
            saved = "all steps are done, and what was trained is saved"
        return f": {saved}. To continue: the same command with resume=auto run.dir={files.path}"
    return " before the first checkpoint: nothing is kept but what was computed for the cache; the same command begins anew"


def _train_into(files: RunFolder, config: TrainConfig, console: Console, main: bool, trackers: Trackers) -> None:
    folder = files.path
    reset_process_peak()
    if config.adapter.name == ROUTER:
        train_router(files, config, console, main, trackers)
        return
    has_test = any(subtask.data.test for subtask in subtasks(config).values())
    log.info("Run folder: %s", folder)
    splits = ["train", "eval", "test"] if has_test else ["train", "eval"]
    samples: dict[str, Sequence[Sample]] = {**load_run(config, splits)}
    data = {split: fingerprint(found) for split, found in samples.items()}
    log.info("Data: %s", ", ".join(f"{len(found):,} {split} samples" for split, found in samples.items()))
    setup = new_setup(config, samples, folder if config.resume == "auto" else None)
    if main:
        _report_data(files, config, samples, setup)
    samples = as_seen(samples, config)
    tries = tries_passes(config.trainer)
    workers, config = config.trainer.workers, setup.config
    samples["train"] = setup.task.learned(samples["train"])
    began = time.perf_counter()
    build_sample_cache(setup, samples["train"], config, console)
    filled_in = time.perf_counter() - began
    _announce(config, setup)
    # of several processes one is enough: nothing that is computed together depends on it
    constants = _constants(setup, samples["train"], data["train"]) if main else {}
    yardsticks = {
        split: setup.task.yardsticks(samples[split], constants) for split in samples if split != "train" and main
    }
    describe_yardsticks(config, yardsticks)
    samples["train"] = augmented(samples["train"], config)
    trained = Trained(
        setup.model,
        group_of,
        save_adapter=None if config.adapter.name == "none" else lambda into: save(setup.model, into),
        layers=setup.layers,
        within=lambda step: _dropping(config, setup, step),
        prune=_pruning(config, folder),
        scored_frozen=lambda found: (
            write_predictions(files, "frozen", found, samples["eval"], config) if main else None
        ),
    )
    shown = shuffled(samples["train"], config)
    loop = Loop(config, setup.task, trained, shown, samples["eval"], folder, console, tries=tries)
    config = loop.config
    loop.began -= filled_in
    loop.sinks = sinks = trackers(config)
    if main:
        files.unseal()
        # what loads fastest here does so here: an evaluation elsewhere finds out for itself
        asked = replace(config, trainer=replace(config.trainer, workers=workers))
        save_config(asked, folder)
        loop.checkpointer.config = config_text(asked)  # from which it may have to be restored
        files.note_start(data)
        write_json(files.constants, constants)
        keep_processor(setup, folder)
    cache = cache_prefix(setup.backbone, config, samples, loop.uses, loop.precision, console, COMMAND.get().alike)
    keep_resized(setup.backbone, config.trainer, samples, loop.uses, cache, COMMAND.get().alike)
    if main:
        files.note_resolved(_resolved(config, setup, loop, cache))
        files.seal(complete=False)
    with described(config, setup, samples["train"], loop.device, loop.precision, lambda: loop.place):
        result = loop.run()
    if shares := usage(setup.model):
        log.info("Sources by use: %s", ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    extra = {}
    if "test" in samples:
        extra["test"] = scored(setup, samples["test"], config.trainer, loop.device, loop.precision, console)
    metrics = summary(config, setup, result, extra, yardsticks) | {
        "data": data,
        "cache": cache.facts if cache else {"where": "off"},
    }
    if main:
        files.unseal()
        for split, found in (("", metrics), *((split, metrics[split]) for split in extra)):
            for mark in marks(config, found, split):
                log.warning(mark)
        evaluations = {"eval": result.evaluation, **extra}
        evaluated = {split: evaluation for split, evaluation in evaluations.items() if evaluation is not None}
        for split, evaluation in evaluated.items():
            write_predictions(files, split, evaluation, samples[split], config)
        write_json(files.metrics, metrics)  # all but last: a folder with metrics.json is a finished run
        files.seal()
        if setup.is_adapter:
            write_card(files.adapter, config, metrics, Place(str(folder), str(files.adapter)))
        predicted = {split: evaluation.predictions for split, evaluation in evaluated.items()}
        tables = tables_of(config.logger, predicted, samples)
        for sink in sinks:
            sink.report(outcome_of(metrics, tables, files.adapter if files.adapter.is_dir() else None))
        if config.run.report == "auto" and not BRIEF.get():  # a sweep has one of all its jobs
            report_at_end(folder, samples["eval"])
        show_run(config, folder, metrics)
    give_back(loop.parameters.values())


def _constants(setup: TrainingSetup, train: Sequence[Sample], data: str) -> dict[str, Any]:
    """The constants of a task, from disk where they were found before: of many samples finding them takes longer than all else that
    is done with their texts."""
    if len(train) <= AT_MOST:
        return setup.task.constants(train)
    key = key_of("constants", __version__, data, len(train), dataclasses.asdict(setup.task.config))
    if (known := load_result(key)) is None:
        keep_result(key, known := setup.task.constants(train))
    return dict(known)


def describe_yardsticks(config: TrainConfig, yardsticks: Mapping[str, Yardsticks]) -> None:
    """Log what the scores of each split will be compared with, before they are there."""
    for split, found in yardsticks.items():
        for sentence in found.described:
            log.warning("%s: %s", split, sentence)
        shown = [
            f"{name.replace('_', ' ')} {shown_score(config, config.task.metric, baseline.metrics[config.task.metric])}"
            for name, baseline in found.baselines.items()
            if config.task.metric in baseline.metrics
        ]
        if shown:
            log.info("Baselines (%s, %s): %s", split, config.task.metric, ", ".join(shown))


def _report_data(
    files: RunFolder, config: TrainConfig, samples: Mapping[str, Sequence[Sample]], setup: TrainingSetup
) -> None:
    """Write the data report; say in a line what the data is like, and what is likely wrong with it."""

    def texts() -> dict[str, Any]:
        facts = {}
        for name, task in subtasks_of(setup.task).items():
            facts[name] = text_facts(task, by_subtask(samples, name))
        return {"texts": facts, "warnings": [], "problems": []}

    report = report_of(config, samples, texts, brief=True)
    for line in brief_lines(report):
        log.info("%s", line)
    for warning in report["warnings"]:
        # those of texts were said when the lengths were checked, those of captions are with what they let a score reach
        if warning["kind"] not in (TEXTS, SHARED_CAPTIONS):
            log.warning("%s", warning["message"])
    write_json(files.data, report)


def _pruning(config: TrainConfig, folder: Path) -> Callable[[int], bool]:
    """The rule by which the job of a sweep is stopped early; never, if there is none."""
    sweep = COMMAND.get().sweep
    return MedianRule(sweep, folder, config.task.metric) if config.sweep.prune and sweep else lambda step: False


def tries_passes(trainer: TrainerConfig) -> bool:
    """Whether the longest batch is run before the training: where what was predicted is what a device must have room for."""
    return trainer.batch_size == "auto" and choose_device(trainer.device).type != "cpu"


def _resolved(config: TrainConfig, setup: TrainingSetup, loop: Loop, cache: PrefixCache | None) -> dict[str, Any]:
    """What `auto` and open settings came to on this machine."""
    return {
        "trainer.device": loop.device.type,
        "trainer.precision": loop.precision,
        "trainer.cache": cache.facts.get("where") if cache else "off",
        "trainer.batch_size": config.trainer.samples_per_pass,
        "trainer.accumulate": config.trainer.passes_per_step,
        "trainer.workers": config.trainer.loaders,
        "trainer.eval_batch_size": config.trainer.samples_per_evaluation_pass,
        "trainer.max_steps": loop.total,
        "task.max_length": config.task.max_length,
        "task.decode.max_new_tokens": config.task.decode.max_new_tokens,
        "adapter.points": config.points,
        **({"predicted_peak_mb": round(setup.predicted_peak / 1e6, 1)} if setup.predicted_peak else {}),
    }


def _dropping(config: TrainConfig, setup: TrainingSetup, step: int) -> AbstractContextManager[None]:
    """What the layers of a step go without, if that is drawn."""
    most = config.adapter.drop_random
    return dropping(setup.model, drawn(most, config.seed, step)) if most else nullcontext()


def summary(
    config: TrainConfig,
    setup: TrainingSetup,
    result: Result,
    extra: Mapping[str, Evaluation],
    yardsticks: Mapping[str, Yardsticks],
) -> dict[str, Any]:
    """The content of `metrics.json`: scores in percent, sizes, speed, memory, and what they depend on."""
    trainable = setup.parameters(trainable=True)
    total = setup.parameters()
    if not yardsticks:  # another process than the first, which writes nothing
        return {}
    records = {
        split: scored_record(config, found, yardsticks[split], TRAINING)
        for split, found in (("eval", result.evaluation), *extra.items())
        if found is not None
    }
    return {
        "task": config.task.name,
        "model": config.model.name,
        "adapter": config.adapter.name,
        "metric": config.task.metric,
        **records.pop("eval", {"metrics": {}, "settings": {}}),
        **records,
        **({"frozen": {"metrics": result.frozen}} if result.frozen else {}),
        "parameters": {"trainable": trainable, "total": total, "percent": 100 * trainable / total},
        **towers(config, setup.model),
        "speed": {"samples_per_s": result.samples_per_s, "wall_s": result.wall_seconds},
        "memory": {"peak_mb": result.peak_mb},
        "training": {
            "steps": result.steps,
            "epochs": result.epochs,
            "samples": result.samples,
            "best_step": result.best_step,
            "evaluations": result.evaluations,
            "chosen_by": config.task.metric,
            "chosen_on": "eval",
            "stopped_early": result.stopped_early,
            "pruned": result.pruned,
            "resumed_from": result.resumed_from,
            "seed": config.seed,
        },
        "machine": {"device": result.device, "precision": result.precision, "processes": result.processes},
        **({"fusion": shares} if (shares := usage(setup.model)) else {}),
        "frozen_hash": result.frozen_hash,
        "backbone": setup.backbone.source,
        **({"backbone_revision": " + ".join(commits)} if (commits := _commits(config)) else {}),
        "versions": versions(),
    }


def _commits(config: TrainConfig) -> list[str]:
    """The commits of the hub that the weights are of, where they are from there."""
    found = {} if config.model.random_init else revisions_of(config.model, config.task.name)
    return [commit for commit in found.values() if commit]


def _announce(config: TrainConfig, setup: TrainingSetup) -> None:
    trainable, total = setup.parameters(trainable=True), setup.parameters()
    log.info("Backbone: %s, %s", config.model.name, setup.backbone.source)
    log.info(
        "adapter=%s: %s trainable parameters (%.2f %% of %s)",
        config.adapter.name, f"{trainable:,}", 100 * trainable / total, f"{total:,}",
    )  # fmt: skip


def _refuse_other_run(config: TrainConfig, files: RunFolder) -> None:
    """Refuse a folder that holds a run, unless it is to be continued and its configuration agrees.

    Raises:
        UserError: with the differences.
    """
    if not files.holds_work:
        return
    folder = files.path
    if files.is_exported:
        raise UserError(f"{folder} holds an exported run, which is not continued: choose another run.name or run.dir")
    if config.resume != "auto":
        raise UserError(
            f"{folder} holds a run already: continue it with resume=auto, or choose another run.name or run.dir"
        )
    saved, told = find_config(folder)
    if saved is None and files.adapter.exists() and not steps_in(files.checkpoints):
        raise UserError(f"{told}; {files.adapter} is not to be overwritten: choose another run.name or run.dir")
    if told:
        log.warning(told if saved else f"{told}: it is written anew, from this command")
    if saved is None:
        return
    then, now = flat(saved), flat(dataclasses.asdict(_continued(config, files)))
    differing = [
        f"{key}: {then.get(key)} there, {now.get(key)} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not _is_free(key)
    ]
    if differing:
        raise UserError(
            [f"{folder} holds a run with another configuration, so it cannot be continued; it differs in", *differing]
        )


def flat(values: Mapping[str, Any], key_prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{key_prefix}{key}.")
        else:
            found[key_prefix + str(key)] = value
    return found


def _continued(config: TrainConfig, files: RunFolder) -> TrainConfig:
    """The configuration with the passes, the lengths of texts and the commits of the run that it continues, where it leaves them
    open: what had room goes on, what was measured of the data, and the weights that were there."""
    if config.resume != "auto" or not (run := find_config(files.path)[0]):
        return config
    config = replace(config, task=_with_lengths(config.task, run.get("task") or {}))
    if not config.model.random_init:
        config = replace(config, model=_with_revisions(config.model, config.task.name, run.get("model") or {}))
    trainer, size, passes = config.trainer, config.trainer.batch_size, config.trainer.accumulate
    if "auto" not in (size, passes):
        return config
    saved = run.get("trainer") or {}
    if passes == "auto":
        passes = saved.get("accumulate", passes) if size == "auto" else 1
    if size == "auto":
        size = saved.get("batch_size", size)
    return replace(config, trainer=replace(trainer, batch_size=size, accumulate=passes))


def _with_lengths(task: TaskConfig, saved: Mapping[str, Any]) -> TaskConfig:
    """A task with the lengths of a saved one, where it leaves them open."""
    decode, of_decode, of_subtasks = task.decode, saved.get("decode") or {}, saved.get("subtasks") or {}
    if decode.max_new_tokens == "auto":
        decode = replace(decode, max_new_tokens=of_decode.get("max_new_tokens", "auto"))
    length = saved.get("max_length", "auto") if task.max_length == "auto" else task.max_length
    subtasks = {name: _with_lengths(own, of_subtasks.get(name) or {}) for name, own in tasks(task).items()}
    return replace(task, decode=decode, max_length=length, subtasks=subtasks)


def _with_revisions(model: ModelConfig, task: str, saved: Mapping[str, Any]) -> ModelConfig:
    """A backbone with the commits that a run was begun with, where it leaves the revisions open or names what is still these."""
    of_submodels = saved.get("submodels") or {}

    def commit_for(own: str | None, then: str | None, submodel: str = "") -> str | None:
        if own is None:
            return then
        names = checkpoints_of(model, task)
        now = hub.cached(names.get(submodel) or next(iter(names.values())), own)
        return then if now and now.name == then else own

    submodels = {
        name: replace(own, revision=commit_for(own.revision, (of_submodels.get(name) or {}).get("revision"), name))
        for name, own in model.submodels.items()
    }
    return replace(model, revision=commit_for(model.revision, saved.get("revision")), submodels=submodels)


def _is_free(key: str) -> bool:
    return any(key == free or fnmatch(key, f"{free}.*") or fnmatch(key, free) for free in FREE)
