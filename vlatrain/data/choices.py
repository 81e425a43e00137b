"""Questions with options: how rows and built-in samples get them, and another order of them each time."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch

from vlatrain.config import TrainConfig
from vlatrain.config.errors import UserError
from vlatrain.config.joint import subtasks
from vlatrain.config.wording import OPTIONS, QUESTION, Wording
from vlatrain.data.augment import Augmented
from vlatrain.data.cells import text
from vlatrain.data.sample import Sample

NO_ROW: Mapping[str, Any] = {}
BUILT_IN = 4  # options of a built-in question


def reordered(sample: Sample, order: Sequence[int], wording: Wording) -> Sample:
    """A sample with its options in another order, also where its question lists them.

    Args:
        sample: the sample.
        order: the place of each option in the former order.
        wording: how its question was made.
    """
    options = tuple(sample.options[place] for place in order)
    asked = sample.question.replace(wording.listed(sample.options), wording.listed(options), 1)
    return replace(sample, options=options, question=asked)


def without_options(sample: Sample, wording: Wording) -> str:
    """The question of a sample without its options: what is the same in questions of one wording."""
    return sample.question.replace(wording.listed(sample.options), "", 1) if sample.options else sample.question


class Shuffled(Sequence[Sample]):
    """Samples, whose options stand in another order whenever one is asked for, by torch's generator.

    Args:
        samples: the samples.
        wordings: of those whose questions list options how they do, by subtask of a joint run; any other run has an empty name.
    """

    def __init__(self, samples: Sequence[Sample], wordings: Mapping[str, Wording]) -> None:
        self.samples, self.wordings = samples, wordings

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return Shuffled(self.samples[index], self.wordings)
        sample = self.samples[index]
        if (wording := self.wordings.get(sample.subtask)) is None or not sample.options:
            return sample
        return reordered(sample, torch.randperm(len(sample.options)).tolist(), wording)


def shuffled(samples: Sequence[Sample], config: TrainConfig) -> Sequence[Sample]:
    """Training samples as a configuration has them: their options, where the model sees them, in another order each time."""
    listing = reordering(config)
    return Shuffled(samples, listing) if listing else samples


def reordering(config: TrainConfig) -> dict[str, Wording]:
    """By subtask, how questions are made whose options the model sees in another order each time."""
    wordings = {name: one.task.wording for name, one in subtasks(config).items()}
    return {name: wording for name, wording in wordings.items() if wording.chooses and wording.lists}


def asked(question: str, options: Sequence[str], wording: Wording, row: Mapping[str, Any] = NO_ROW) -> str:
    """A question as a task words it.

    Args:
        question: the question.
        options: its options.
        wording: how it is worded.
        row: the other columns of its row, if it has one.

    Raises:
        UserError: its wording needs further columns.
    """
    if not wording.template:
        return question
    values = {QUESTION: question, OPTIONS: wording.listed(options)}
    values |= {name: text(row[name]) for name in wording.columns if name in row and name not in values}
    if unknown := [name for name in wording.columns if name not in values]:
        raise UserError(
            f"task.prompt={wording.template!r}: nothing says {', '.join(unknown)} here: ask with input=FILE, whose rows do"
        )
    return wording.filled(values)


def lacking(sample: Sample, wording: Wording) -> list[str]:
    """What a sample that was read unworded lacks for a task to ask it: names of columns."""
    if not wording.template and not wording.chooses:
        return []
    known = {QUESTION, OPTIONS, *(name for name, _ in sample.extra)}
    bare = [OPTIONS] if (wording.chooses or wording.lists) and not sample.options else []
    return [*bare, *(name for name in wording.columns if name not in known)]


def plain(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Samples as they are, where others are drawn of them each time."""
    while isinstance(samples, Augmented | Shuffled):
        samples = samples.samples
    return samples


def worded(samples: Sequence[Sample], pool: Sequence[Sample], wording: Wording) -> list[Sample]:
    """Built-in samples with questions as a task words them, and with options: the answer and others to questions on its topic.

    Args:
        samples: the samples.
        pool: samples by whose answers it is known what may be asked for.
        wording: how their questions are made.

    Raises:
        UserError: they have no such column.
    """
    answers: dict[str, set[str]] = {}
    for sample in pool:
        answers.setdefault(str(dict(sample.extra).get("topic", "")), set()).update(sample.answers)
    return [_worded(sample, answers, wording) for sample in samples]


def _worded(sample: Sample, answers: Mapping[str, set[str]], wording: Wording) -> Sample:
    extra = {name: str(value) for name, value in sample.extra}
    options: tuple[str, ...] = ()
    if wording.chooses or wording.lists:
        draw = random.Random(f"options/{sample.id}/{sample.question}")
        others = sorted(answers[extra.get("topic", "")] - {*sample.answers})
        drawn = [sample.answers[0], *draw.sample(others, min(BUILT_IN - 1, len(others)))]
        options = tuple(draw.sample(drawn, len(drawn)))
    values = {**extra, QUESTION: sample.question, OPTIONS: wording.listed(options)}
    if unknown := [name for name in wording.columns if name not in values]:
        raise UserError(f"task.prompt: data=shapes has no {', '.join(unknown)}; it has {', '.join(sorted(values))}")
    return replace(sample, options=options, question=wording.filled(values) if wording.template else sample.question)
