"""Samples from generated scenes, the user's files or the hub: `load` gives each split as a list, checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vlatrain.config.data import DataConfig
from vlatrain.config.errors import UserError
from vlatrain.config.spec import TaskSpec
from vlatrain.config.task import TaskConfig
from vlatrain.data.checks import Problems, check_pictures, check_sizes
from vlatrain.data.images import BytesPicture, FilePicture, open_rgb, picture_files
from vlatrain.data.rows import Builder, build, find_columns
from vlatrain.data.sample import Picture, Sample
from vlatrain.data.splits import cap, hold_out

__all__ = ["BytesPicture", "FilePicture", "Picture", "Sample", "load", "load_inputs", "open_rgb", "picture_files"]

SHAPES_SIZE = {"train": 4000, "eval": 500, "test": 500}  # where the configuration names no size


def load(config: DataConfig, task: TaskConfig, splits: Sequence[str], batch_size: int = 1) -> dict[str, list[Sample]]:
    """The samples of the splits asked for.

    Where `data.eval` is null, `data.eval_fraction` of the training data is split off by image, whichever of the two
    splits is asked for, so that they never overlap between calls. `data.train_size` and `data.eval_size` then cap what
    is left: a seeded draw, or for a stream the first so many.

    Args:
        config: the source.
        task: the task; its description says which columns must be there.
        splits: some of train, eval and test.
        batch_size: fewest training samples allowed.

    Returns:
        Split -> samples, in the order of the data.

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

        if task.spec.builtin not in shapes.SETS:
            raise UserError(
                f"data=shapes: has no {task.spec.builtin!r}, which task={task.name} names; it has {', '.join(shapes.SETS)}"
            )
        sizes = {split: (config.train_size if split == "train" else config.eval_size) for split in splits}
        samples = {s: shapes.build(task.spec.builtin, s, sizes[s] or SHAPES_SIZE[s], config.seed) for s in splits}
        check_sizes(samples, task, batch_size, problems)
    else:
        samples = _load_stored(config, task, splits, batch_size, problems)
    problems.raise_if_any()
    return samples


def load_inputs(path: str, config: DataConfig, task: TaskConfig) -> list[Sample]:
    """The rows of a file as samples to predict on: every row is one, and the references may be absent.

    Args:
        path: a file in one of the formats of `data=files`.
        config: column map and image root.
        task: the task; its description says which columns must be there.

    Raises:
        UserError: with everything that is wrong with the file.
    """
    problems = Problems()
    builder = _read_file(config, path, "input", task.spec, problems, labelled=False)
    if builder is not None:
        _check_pictures(builder, builder.samples, problems)
    problems.raise_if_any()
    assert builder is not None
    return builder.samples


def _load_stored(
    config: DataConfig, task: TaskConfig, splits: Sequence[str], batch_size: int, problems: Problems
) -> dict[str, list[Sample]]:
    split_off = config.eval is None and bool({"train", "eval"} & set(splits))
    stored = dict.fromkeys("train" if split_off and split == "eval" else split for split in splits)
    builders: dict[str, Builder] = {}
    sound = set()  # splits all of whose rows are samples: of others the size says nothing
    for split in stored:
        if getattr(config, split) is None:  # reported with the settings
            continue
        before = len(problems)
        builder = _read_split(config, split, task.spec, split_off, problems)
        if builder is not None:
            builders[split] = builder
            sound |= {split} if len(problems) == before else set()
        elif config.name == "hub" and not os.path.exists(os.path.expanduser(config.path or "")):
            break  # a hub that does not answer takes half a minute to say so; once is enough
    found = {split: builder.samples for split, builder in builders.items()}
    if split_off and "train" in found and (config.eval_fraction or config.streaming):
        count = round(config.eval_fraction * len(found["train"]))
        if config.streaming:
            count = config.eval_size or 0
        found["train"], found["eval"] = hold_out(found["train"], count, config.seed)
        if not found["eval"] and "train" in sound and found["train"]:
            problems.add(
                "splits",
                "data.train: all samples share one image, so none can be split off for evaluation: set data.eval",
            )
    for split, samples in found.items():
        found[split] = cap(samples, config.train_size if split == "train" else config.eval_size, config.seed)
    if split_off and "train" in sound and found.get("eval"):
        sound.add("eval")
    check_sizes({split: found[split] for split in splits if split in sound}, task, batch_size, problems)
    for split, builder in builders.items():
        chosen = found[split] + (found.get("eval", []) if split_off and split == "train" else [])
        _check_pictures(builder, chosen, problems)
    return {split: found.get(split, []) for split in splits}


def _read_split(config: DataConfig, split: str, spec: TaskSpec, split_off: bool, problems: Problems) -> Builder | None:
    """Read what the configuration names for a split: a file, or a split of the hub's data set."""
    named: str = getattr(config, split)
    if config.name == "files":
        return _read_file(config, named, f"data.{split}", spec, problems)
    from vlatrain.data import hub

    limit = config.train_size if split == "train" else config.eval_size
    if split_off and split == "train":
        limit = (config.train_size or 0) + (config.eval_size or 0)
    return hub.read_split(config, named, spec, limit, problems)


def _read_file(
    config: DataConfig, path: str, option: str, spec: TaskSpec, problems: Problems, labelled: bool = True
) -> Builder | None:
    from vlatrain.data.files import read_table

    table = read_table(path, problems, option)
    if table is None:
        return None
    columns = find_columns(table.columns, config.columns, spec, path, problems, labelled)
    if columns is None:
        return None
    root = Path(config.root).expanduser() if config.root else Path(path).expanduser().parent
    return build(table.rows, columns, spec, path, root, problems, labelled, table.delimited)


def _check_pictures(builder: Builder, samples: Sequence[Sample], problems: Problems) -> None:
    if builder.root and not os.path.isdir(builder.root):  # reported with the settings
        return
    pictures = [(sample.image, sample.source) for sample in samples]
    check_pictures(pictures + builder.rejected, problems, builder.root)


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
    if "eval" in splits and config.eval is None and config.eval_fraction == 0 and not config.streaming:
        problems.add(
            "settings",
            f"data.eval is not set and data.eval_fraction=0: set data.eval={wanted}, or the "
            "share of data.train to split off",
        )
    if "test" in splits and config.test is None:
        problems.add("settings", f"data.test is not set: set data.test={wanted}")
    if config.root and not Path(config.root).expanduser().is_dir():
        problems.add("settings", f"data.root={config.root}: no such folder")
