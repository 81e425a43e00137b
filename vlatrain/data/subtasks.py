"""The samples of a run. A joint run has those of all its subtasks in one list.

Sampling: `proportional` takes every sample once, `balanced` as many of each subtask, `temperature` shares that go with size^(1 / T)
(Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020, section 3.5.2). The
largest subtask always comes whole and the others are repeated, so that no sample is lost; an epoch is the longer for it. Classes
are balanced in the same way (`data.balance`).
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from vlatrain.config import TaskConfig, TrainConfig, UserError
from vlatrain.config.joint import JOINT, subtasks
from vlatrain.data import load
from vlatrain.data.checks import Problems, check_labels
from vlatrain.data.features import check_shown
from vlatrain.data.lazy import column, joined, named, select
from vlatrain.data.masks import check_masks
from vlatrain.data.sample import Sample
from vlatrain.data.splits import few_shots

log = logging.getLogger("vlatrain")

SHOWN = 5  # classes that a message names


def load_run(config: TrainConfig, splits: Sequence[str]) -> dict[str, Sequence[Sample]]:
    """The samples of a run.

    Args:
        config: the run's configuration.
        splits: some of train, eval and test.

    Returns:
        Split -> samples. Of a joint run, each sample says its subtask, which its id begins with; those of train are as many of each
        subtask as the sampling rule says.

    Raises:
        UserError: with everything that is wrong with the data, of all subtasks.
    """
    size = config.trainer.batch_size
    fewest = size if isinstance(size, int) else 1
    if config.task.name != JOINT:
        return _load(config, splits, fewest)
    found: dict[str, dict[str, Sequence[Sample]]] = {split: {} for split in splits}
    problems: list[str] = []
    for name, subtask in subtasks(config).items():
        try:
            for split, samples in _load(subtask, splits).items():
                found.setdefault(split, {})[name] = named(samples, name)
        except UserError as error:
            problems += [f"subtask {name}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)
    every = [*subtasks(config)]
    for split in [split for split, by_subtask in found.items() if len(by_subtask) < len(every)]:
        own = found.pop(split)
        lacking = [f"data.subtasks.{name}.{split}" for name in every if name not in own]
        log.warning(
            "%s samples are left out, as they are those of %s alone (%s): a joint score needs all subtasks'; set %s",
            split, ", ".join(own), f"{sum(map(len, own.values())):,}", ", ".join(lacking),
        )  # fmt: skip
    together = {split: joined(by_subtask.values()) for split, by_subtask in found.items()}
    if "train" in together:
        together["train"] = sampled(found["train"], config.task, config.seed)
        if (count := len(together["train"])) < fewest:
            raise UserError(
                f"the subtasks have {count} training samples in all, fewer than one batch of {fewest}: set "
                f"trainer.batch_size={count} or less"
            )
    return together


def _load(config: TrainConfig, splits: Sequence[str], batch_size: int = 1) -> dict[str, Sequence[Sample]]:
    """The samples of a run that is not joint, or of a subtask."""
    samples = load(config.data, config.task, splits, batch_size)
    check_shown(config.model, joined(samples.values()))
    if "label" in config.task.spec.fields:
        problems = Problems()
        check_labels(samples, config.task.classes, config.task.metric, problems)
        problems.raise_if_any()
        if "train" in samples:
            samples["train"] = _by_class(config, samples["train"])
    if "mask" in config.task.spec.fields:
        problems = Problems()
        check_masks(samples, config.task.classes, config.task.ignore, problems)
        problems.raise_if_any()
    return samples


def _by_class(config: TrainConfig, train: Sequence[Sample]) -> Sequence[Sample]:
    """The training samples with as many of each class as `data.shots` and `data.balance` say."""
    shots = config.data.shots
    if shots is not None:
        counts = Counter(column(train, "label"))
        # fewer than a batch are no mistake here: a step takes all of them
        train = few_shots(train, shots, f"{config.data.seed}/{config.seed}")
        if few := [label for label, count in counts.items() if count < shots]:
            named = ", ".join(f"'{label}' {counts[label]}" for label in few[:SHOWN]) + (", ..." if few[SHOWN:] else "")
            message = "data.shots=%s: %s of %s classes have fewer training samples: %s"
            log.warning(message, shots, len(few), len(counts), named)
    if config.data.balance == "none":
        return train
    groups: dict[str, list[int]] = {}
    for place, label in enumerate(column(train, "label")):
        groups.setdefault(label, []).append(place)
    most = max(map(len, groups.values()))
    return select(train, [place for label, own in groups.items() for place in _repeated(own, most, label, config.seed)])


def sampled(samples: Mapping[str, Sequence[Sample]], config: TaskConfig, seed: int) -> Sequence[Sample]:
    """The training samples of all subtasks by the sampling rule, one subtask's after the other's.

    Args:
        samples: the samples of each subtask, by its name.
        config: the joint task.
        seed: seed of the draw that fills up a subtask whose samples are repeated.
    """
    counts = shares({name: len(own) for name, own in samples.items()}, config.sampling, config.sampling_temperature)
    return joined(select(own, _repeated(range(len(own)), counts[name], name, seed)) for name, own in samples.items())


def _repeated(places: Sequence[int], count: int, name: str, seed: int) -> list[int]:
    """So many places of a group: all of them as often as they go into it, and a seeded draw."""
    whole, rest = divmod(count, len(places))
    # seeded by text: the same on every machine, and for a subtask whatever the others are
    return [*places] * whole + random.Random(f"{seed}/{name}").sample(places, rest)


def shares(sizes: Mapping[str, int], sampling: str, temperature: float) -> dict[str, int]:
    """How many samples of each subtask an epoch has.

    Args:
        sizes: number of samples of each subtask, at least one.
        sampling: proportional, balanced or temperature.
        temperature: T of `sampling=temperature`: subtask i has n_max * (n_i / n_max)^(1 / T), rounded.
    """
    most = max(sizes.values())
    power = {"proportional": 1.0, "balanced": 0.0, "temperature": 1 / temperature}[sampling]
    return {name: round(most * (size / most) ** power) for name, size in sizes.items()}
