"""Samples from generated scenes, the user's files or the hub: `load` gives each split as a list, checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vlatrain.config.data import DataConfig
from vlatrain.config.errors import UserError
from vlatrain.config.spec import TaskSpec
from vlatrain.config.task import TaskConfig
from vlatrain.data.checks import Fault, Problems, check_pictures, check_sizes, find_faults, report_faults
from vlatrain.data.choices import worded
from vlatrain.data.columns import check_groups
from vlatrain.data.hub import Hub
from vlatrain.data.images import BytesPicture, FilePicture, allow, identity, open_rgb, picture_files
from vlatrain.data.reading import Files
from vlatrain.data.rows import Builder
from vlatrain.data.sample import Picture, Sample
from vlatrain.data.splits import cap, hold_out
from vlatrain.data.stored import Loaded, stored_or_read

__all__ = ["BytesPicture", "FilePicture", "Picture", "Sample", "load", "load_inputs", "open_rgb", "picture_files"]

log = logging.getLogger("vlatrain")

SHOWN = 3  # samples that are left out, in a message; the run's log has all
POOL = 300  # built-in samples by which it is known what a question may be answered by
SHAPES_SIZE = {"train": 4000, "eval": 500, "test": 500}  # where the configuration names no size


def load(
    config: DataConfig, task: TaskConfig, splits: Sequence[str], batch_size: int = 1
) -> dict[str, Sequence[Sample]]:
    """The samples of the splits asked for.

    Where `data.eval` is null, `data.eval_fraction` of the training data is split off by image, whichever of the two
    splits is asked for, so that they never overlap between calls. Where a column of a file says the split instead, eval is
    what it marks, and so is test if train and eval are asked for and `data.test` is null. `data.train_size` and
    `data.eval_size` then cap what is left: a seeded draw, or for a stream the first so many.

    Args:
        config: the source.
        task: the task; its description says which columns must be there.
        splits: some of train, eval and test.
        batch_size: fewest training samples allowed.

    Returns:
        Split -> samples, in the order of the data: a list, or of many rows a sequence that is mapped from disk.

    Raises:
        UserError: with everything that is wrong with the data, by file and row.
    """
    if task.spec == TaskSpec():
        raise ValueError(f"no description of the samples of task {task.name!r}")
    problems = Problems()
    _check_settings(config, splits, problems)
    if config.name != "files":
        problems.raise_if_any()
    if config.name == "shapes":
        from vlatrain.data import shapes

        name = f"{task.spec.builtin}_pairs" if config.pairs else task.spec.builtin
        if name not in shapes.SETS and config.pairs:
            raise UserError(
                f"data.pairs=true: there are no built-in samples of task={task.name} about two pictures; task=vqa has some"
            )
        if name not in shapes.SETS:
            raise UserError(
                f"data=shapes: has no {name!r}, which task={task.name} names; it has {', '.join(shapes.SETS)}"
            )
        sizes = {split: (config.train_size if split == "train" else config.eval_size) for split in splits}
        samples = {s: shapes.build(name, s, sizes[s] or SHAPES_SIZE[s], config.seed) for s in splits}
        if task.wording.template or task.wording.chooses:
            pool = shapes.build(name, "train", POOL, 0)
            samples = {s: worded(own, pool, task.wording) for s, own in samples.items()}
        if config.groups:
            samples = {s: own if s == "train" else _grouped(own, config.groups, problems) for s, own in samples.items()}
        check_sizes(samples, task, batch_size, problems)
        problems.raise_if_any()
        return {**samples}

    allow(config.max_megapixels)

    def read() -> Loaded:
        loaded = _load_stored(config, task, splits, batch_size, problems)
        problems.raise_if_any()
        return loaded

    found = stored_or_read(config, task, splits, read)
    check_sizes(
        {split: found[split] for split in splits}, task, batch_size, problems
    )  # which depends on the training, too
    problems.raise_if_any()
    return found


def load_inputs(path: str, config: DataConfig, task: TaskConfig) -> list[Sample]:
    """The rows of a file as samples to predict on: every row is one, and the references may be absent.

    Args:
        path: a file in one of the formats of `data=files`.
        config: column map and image root.
        task: the task; its description says which columns must be there.

    Raises:
        UserError: with everything that is wrong with the file.
    """
    allow(config.max_megapixels)
    problems = Problems()
    builder = Files(config, task.spec, problems, labelled=False, wording=task.wording).all(path, "input")
    if builder is not None:
        check_pictures(_pictures(builder, builder.samples), problems, builder.root)
    problems.raise_if_any()
    assert builder is not None
    return builder.samples


def _load_stored(
    config: DataConfig, task: TaskConfig, splits: Sequence[str], batch_size: int, problems: Problems
) -> Loaded:
    builders, split_off = _read(config, task, splits, problems)
    found = {split: builder.samples for split, builder in builders.items()}
    by_class = config.stratify and "label" in task.spec.fields
    if split_off and "train" in found and (config.eval_fraction or config.streaming):
        fewest = max((bound.samples for bound in task.spec.smallest if "eval" in bound.splits), default=1)
        count = max(round(config.eval_fraction * len(found["train"])), fewest)
        if config.streaming:
            count = config.eval_size or 0
        builders["eval"] = builders["train"]
        found["train"], found["eval"] = hold_out(found["train"], count, config.seed, by_class)
        if not found["eval"] and not len(problems) and found["train"]:
            problems.add(
                "splits",
                "data.train: all samples share one image, so none can be split off for evaluation: set data.eval",
            )
    elif split_off and "eval" in splits and not (config.eval_fraction or config.streaming):
        wanted = "FILE" if config.name == "files" else "SPLIT"
        problems.add(
            "settings",
            f"data.eval is not set and data.eval_fraction=0: set data.eval={wanted}, or the share of data.train to split off",
        )
    if "train" in found:
        found["train"] = [replace(sample, extra=(), groups=()) if sample.extra else sample for sample in found["train"]]
    for split, samples in found.items():
        size = config.train_size if split == "train" else config.eval_size
        found[split] = cap(samples, size, config.seed, by_class)
    sound = not len(problems)  # else splits may be small because of what is reported
    unique = {id(builder): builder for builder in builders.values()}  # what is split off is of the same one
    faults = {key: _faults(builder, builders, found) for key, builder in unique.items()}
    found, whole = _without_broken(config, builders, found, faults, problems)
    if sound:
        sizes = {split: found[split] for split in splits if split in found}
        check_sizes(sizes, task, batch_size, problems)
    for builder in {id(builder): builder for split, builder in builders.items() if split not in whole}.values():
        report_faults(*faults[id(builder)], problems, builder.root)
    unasked = ["test"] if "test" in builders and "test" not in splits else []
    broken = [fault.picture for of_builder, _ in faults.values() for fault in of_builder]
    rows = sum(builder.count for builder in unique.values())
    return Loaded({split: found.get(split, []) for split in [*splits, *unasked]}, rows, broken)


def _read(
    config: DataConfig, task: TaskConfig, splits: Sequence[str], problems: Problems
) -> tuple[dict[str, Builder], bool]:
    """The samples as they are stored, and whether those of eval are yet to be split off train.

    A split column of the training file may mark samples of eval and of test; the latter are read with train and eval unasked.
    """
    split_off = config.eval is None and bool({"train", "eval"} & set(splits))
    stored = dict.fromkeys("train" if split_off and split == "eval" else split for split in splits)
    named = [split for split in stored if getattr(config, split) is not None]  # others are reported with the settings
    builders: dict[str, Builder | None] = {}
    source: Files | Hub = Files(config, task.spec, problems, wording=task.wording)
    if config.name == "hub":
        source = Hub(config, task, problems)
    if split_off and config.train is not None and (marked := source.marked("eval")):
        builders["eval"], split_off = marked, False
        named = [split for split in splits if getattr(config, split) is not None]
    source.splits_off = split_off
    for split in named:
        builders[split] = source.split(split)
        gone = config.name == "hub" and not os.path.exists(os.path.expanduser(config.path or ""))
        if builders[split] is None and gone:
            break  # a hub that does not answer takes half a minute to say so; once is enough
    if config.test is None and "train" in named and {"train", "eval"} <= set(splits):
        builders["test"] = source.marked("test")
    return {split: builder for split, builder in builders.items() if builder is not None}, split_off


def _grouped(samples: Sequence[Sample], groups: Sequence[str], problems: Problems) -> list[Sample]:
    """Generated samples with what scores are given by."""
    check_groups([name for name, _ in samples[0].extra] if samples else groups, groups, "data=shapes", problems)
    return [replace(sample, groups=tuple(groups)) for sample in samples]


def _pictures(builder: Builder, samples: Sequence[Sample]) -> list[tuple[Picture, str]]:
    """The pictures to be looked at, each with where it is named; none below a root that is not there, which is reported."""
    if builder.root and not os.path.isdir(builder.root):
        return []
    return [(one, sample.source) for sample in samples for one in sample.pictures] + builder.rejected


def _faults(
    builder: Builder, builders: Mapping[str, Builder], by_split: Mapping[str, Sequence[Sample]]
) -> tuple[list[Fault], int]:
    """What is wrong with the pictures of a builder's samples that are used, and how many pictures there are."""
    own = [sample for split, samples in by_split.items() if builders[split] is builder for sample in samples]
    return find_faults(_pictures(builder, own))


def _without_broken(
    config: DataConfig,
    builders: Mapping[str, Builder],
    by_split: Mapping[str, list[Sample]],
    faults: Mapping[int, tuple[list[Fault], int]],
    problems: Problems,
) -> tuple[dict[str, list[Sample]], set[str]]:
    """The splits without samples whose images are broken, where `data.skip_broken` allows as many; and which splits these are."""
    left = dict(by_split)
    whole: set[str] = set()
    for split, samples in by_split.items() if config.skip_broken else ():
        said = {identity(fault.picture): fault for fault in faults[id(builders[split])][0]}
        broken = [sample for sample in samples if any(identity(one) in said for one in sample.pictures)]
        share = len(broken) / max(1, len(samples))
        if broken and share > config.skip_broken:
            problems.add(
                "shares of broken images",
                f"data.{split}: {len(broken):,} of {len(samples):,} samples ({share:.2%}) have missing or broken images, and "
                f"data.skip_broken={config.skip_broken} allows {config.skip_broken:.2%}",
            )
            continue
        whole.add(split)
        if broken:
            out = {sample.id for sample in broken}
            left[split] = [sample for sample in samples if sample.id not in out]
            first = (next(said[key] for one in sample.pictures if (key := identity(one)) in said) for sample in broken)
            lines = [f"{sample.source}: {fault.described}" for sample, fault in zip(broken, first, strict=True)]
            log.warning(
                "data.%s: %s of %s samples (%.2f %%) are left out, as their images are missing or broken (data.skip_broken=%s): %s",
                split, f"{len(broken):,}", f"{len(samples):,}", 100 * share, config.skip_broken, "; ".join(lines[:SHOWN]),
            )  # fmt: skip
            for line in lines:
                log.debug("left out: %s", line)
    return left, whole


def _check_settings(config: DataConfig, splits: Sequence[str], problems: Problems) -> None:
    """Report settings that name nothing, before anything is read."""
    if config.name not in ("shapes", "files", "hub"):
        problems.add("settings", f"data.name={config.name}: unknown source; there are shapes, files and hub")
    for option in ("train_size", "eval_size"):
        size = getattr(config, option)
        if size is not None and size < 1:
            problems.add("settings", f"data.{option}={size}: must be 1 or more, or null for all")
    if not 0 <= config.eval_fraction < 1:
        problems.add("settings", f"data.eval_fraction={config.eval_fraction}: must be 0 or more, and below 1")
    if config.name not in ("files", "hub"):
        return
    wanted = "FILE" if config.name == "files" else "SPLIT"
    if config.name == "hub" and not config.path:
        problems.add("settings", "data.path is not set: name a data set of the hub, or a local folder in its layout")
    if config.streaming and config.name == "hub":
        for option in ("train_size", "eval_size"):
            if getattr(config, option) is None:
                problems.add("settings", f"data.streaming=true needs data.{option}: how many samples to take")
    if config.train is None and ("train" in splits or ("eval" in splits and config.eval is None)):
        problems.add("settings", f"data.train is not set: set data.train={wanted}")
    if "test" in splits and config.test is None:
        problems.add("settings", f"data.test is not set: set data.test={wanted}")
    if config.root and not Path(config.root).expanduser().is_dir():
        problems.add("settings", f"data.root={config.root}: no such folder")
