"""A device without room: what was at work, what it took, what was predicted, and what would fit. Nothing changes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from vlatrain.config import TrainConfig, TrainerConfig, UserError
from vlatrain.data.sample import Sample
from vlatrain.training.fitting import IN_EVALUATION, out_of_memory, room_on
from vlatrain.training.memory import lengths_of, on_meta, predicted
from vlatrain.training.precision import choose_device, peak_memory_mb
from vlatrain.training.setup import TrainingSetup

FEW = 3  # overrides that are named

Way = tuple[str, Callable[[TrainConfig], TrainConfig]]


@contextmanager
def described(
    config: TrainConfig,
    setup: TrainingSetup,
    train: Sequence[Sample],
    device: torch.device,
    precision: str,
    where: Callable[[], str],
) -> Iterator[None]:
    """While entered, a device without room is an error of the user's, which says what would fit.

    Args:
        config: the configuration, with numbers for the samples of a pass.
        setup: what is trained.
        train: the training samples.
        device: of the training.
        precision: fp32, bf16 or fp16.
        where: what is at work, in words.
    """
    room = room_on(device)  # what is free before it began: afterwards it is what the training itself has taken
    room += torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
    try:
        with out_of_memory():
            yield
    except torch.OutOfMemoryError as error:
        trainer, peak = config.trainer, 1e6 * peak_memory_mb(device)
        notes = [note for one in (error, error.__cause__) for note in getattr(one, "__notes__", [])]
        doing = IN_EVALUATION if IN_EVALUATION in notes else where()
        size = trainer.samples_per_evaluation_pass if doing == IN_EVALUATION else trainer.samples_per_pass
        ways = [*(_evaluations(size) if doing == IN_EVALUATION else ()), *_ways(config)]
        expected, fitting = _fitting(config, ways, setup, train, room, device, precision)
        known = f", predicted {expected / 1e9:.1f} GB" if expected else ""
        raise UserError(
            f"out of memory on {device.type}, {doing}, with {size} samples a pass: peak {peak / 1e9:.1f} GB{known}, of the "
            f"{room / 1e9:.1f} GB to have. Nothing was changed. {'; '.join(fitting)}"
        ) from error


@contextmanager
def naming_room(config: TrainConfig) -> Iterator[None]:
    """While entered, for an evaluation or a prediction, a device without room is an error of the user's."""
    try:
        with out_of_memory():
            yield
    except torch.OutOfMemoryError as error:
        device = choose_device(config.trainer.device)
        size = config.trainer.samples_per_evaluation_pass
        smaller = [f"trainer.eval_batch_size={number}" for number in (size // 2, size // 4) if number]
        ways = [*smaller, *([] if config.model.quantize else ["model.quantize=8"]), "trainer.device=cpu"]
        raise UserError(
            f"out of memory on {device.type} with {size} samples a pass: peak {peak_memory_mb(device) / 1e3:.1f} GB. Nothing was "
            f"changed. Less is taken with {'; '.join(ways[:FEW])}"
        ) from error


def _fitting(
    config: TrainConfig,
    ways: Sequence[Way],
    setup: TrainingSetup,
    train: Sequence[Sample],
    room: float,
    device: torch.device,
    precision: str,
) -> tuple[int | None, list[str]]:
    """What the training was predicted to take, and the overrides by which it would fit, with what they come to."""
    try:
        shapes = on_meta(setup.backbone, setup.model)

        def peak(way: TrainConfig) -> int:
            size = way.trainer.samples_per_pass
            gpu, low, lengths = device.type != "cpu", precision != "fp32", lengths_of(setup.task, train, size)
            return predicted(way, *shapes, size, lengths, gpu=gpu, low=low, samples=len(train)).peak

        expected = peak(config)
        taken = [(words, peak(change(config))) for words, change in ways]
    except Exception:  # layers that are compiled or sharded cannot be copied: then nothing is predicted
        return None, ["Less is taken with " + "; ".join(words for words, _ in ways[:FEW])]
    # what was predicted had room, and yet there was none: it is off by as much at least
    off = max(1.0, room / expected)
    having = [f"{words} ({off * bytes_of / 1e9:.1f} GB)" for words, bytes_of in taken if off * bytes_of <= room]
    if not having:
        least = min(taken, key=lambda one: one[1], default=("", 0))[0]
        return expected, [
            f"By prediction nothing tried has room; {least} takes least: adapters in later layers take less"
        ]
    return expected, ["By prediction these have room: " + "; ".join(having[:FEW])]


def _changed(**values: Any) -> Callable[[TrainConfig], TrainConfig]:
    return lambda config: replace(config, trainer=replace(config.trainer, **values))


def _evaluations(size: int) -> Iterator[Way]:
    """Smaller batches of evaluations."""
    for less in (size // 2, size // 4):
        if less:
            yield f"trainer.eval_batch_size={less}", _changed(eval_batch_size=less)


def _ways(config: TrainConfig) -> Iterator[Way]:
    """Overrides that take less memory, what changes least first, and what each changes."""
    trainer = config.trainer
    passes = [*_passes(trainer)]
    for number, (size, accumulate) in enumerate(passes):
        yield _words(size, accumulate), _changed(batch_size=size, accumulate=accumulate)
        if number == 0 and not trainer.gradient_checkpointing:
            yield "trainer.gradient_checkpointing=true", _changed(gradient_checkpointing=True)
        if number == 0 and not config.model.quantize:
            yield "model.quantize=8", lambda config: replace(config, model=replace(config.model, quantize=8))
    if passes and not trainer.gradient_checkpointing:
        size, accumulate = passes[-1]
        both = _changed(batch_size=size, accumulate=accumulate, gradient_checkpointing=True)
        yield f"{_words(size, accumulate)} trainer.gradient_checkpointing=true", both
    if not passes and not trainer.gradient_checkpointing:
        yield "trainer.gradient_checkpointing=true", _changed(gradient_checkpointing=True)


def _passes(trainer: TrainerConfig) -> Iterator[tuple[int, int]]:
    """Fewer samples of a pass, of as many a step, and the passes that it takes then."""
    size, step = trainer.samples_per_pass, trainer.samples_per_pass * trainer.passes_per_step
    for less in (size // 2, size // 4, size // 8, 1):
        if 0 < less < size and step % less == 0:
            yield less, step // less


def _words(size: int, accumulate: int) -> str:
    return f"trainer.batch_size={size} trainer.accumulate={accumulate}"
