"""How many samples go through a pass: as many of the backbone's samples a step as memory has room for.

On a GPU that is what is free there. On a CPU it is a fixed room, so that a configuration and its data give the same passes on every
machine. A pass is a whole part of a step: what is learned does not depend on it, but for a contrastive loss, whose negatives are
those of the pass; on a CPU its pass is the backbone's own (`samples_per_contrast`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vlatrain.backbones.base import Backbone
from vlatrain.config import TrainConfig, TrainerConfig, UserError
from vlatrain.data.sample import Sample, texts_of
from vlatrain.tasks import Task, subtasks_of
from vlatrain.tasks.base import move
from vlatrain.training import rng
from vlatrain.training.memory import lengths_of, on_meta, predicted
from vlatrain.training.modes import moving_buffers, train_mode
from vlatrain.training.processes import count, gather

log = logging.getLogger("vlatrain")

CPU_ROOM = 4e9  # bytes
IN_EVALUATION = "in an evaluation"  # the note of an error that came there
SHARE = 0.9  # of what is free on a GPU: the rest is for what the allocator leaves between tensors


def room_on(device: torch.device) -> float:
    """Bytes that a training may take on a device."""
    if device.type == "cuda":
        return SHARE * torch.cuda.mem_get_info(device)[0]
    return SHARE * torch.mps.recommended_max_memory() if device.type == "mps" else CPU_ROOM


def fitted(
    config: TrainConfig,
    backbone: Backbone,
    model: nn.Module,
    task: Task,
    train: Sequence[Sample],
    device: torch.device,
    precision: str,
) -> tuple[TrainerConfig, int | None]:
    """The settings of the loop with numbers for `batch_size` and `accumulate`, and the bytes that it is predicted to take; None:
    it was not asked about. Every process calls it, and gets the same numbers.

    Args:
        config: the configuration.
        backbone: the backbone, adapters in it.
        model: its model as the method returns it.
        task: the task on it.
        train: the training samples, whose texts the length of a pass goes by.
        device: of the training.
        precision: fp32, bf16 or fp16.
    """
    trainer = config.trainer
    if sizes := without_room(config, task, device):
        return replace(trainer, batch_size=sizes[0], accumulate=sizes[1]), None
    step = config.served.samples_per_step
    gpu, low = device.type != "cpu", precision != "fp32"
    shapes = on_meta(backbone, model)

    def peak(size: int) -> int:
        lengths = lengths_of(task, train, size)
        found = predicted(config, *shapes, size, lengths, gpu=gpu, low=low, samples=len(train))
        return found.peak

    room = room_on(device)
    size, whole = largest(step, peak, room)
    size = dividing(step, min(gather(size)), config.task.negatives_per_step)
    if size < step:
        log.info(
            "Batch: %d samples a pass, %d passes a step; the whole step would take %.1f GB of %s",
            size, step // size, whole / 1e9, f"the {room / 1e9:.1f} GB to have" if gpu else "4 GB, which a CPU's pass may take",
        )  # fmt: skip
    return replace(trainer, batch_size=size, accumulate=step // size), whole if size == step else peak(size)


def without_room(config: TrainConfig, task: Task, device: torch.device) -> tuple[int, int] | None:
    """Samples of a pass and passes of a step, where no memory is asked about; None: it decides."""
    trainer, step = config.trainer, config.served.samples_per_step
    if isinstance(trainer.batch_size, int):
        return trainer.batch_size, trainer.accumulate if isinstance(trainer.accumulate, int) else 1
    if isinstance(trainer.accumulate, int):
        return -(-step // trainer.accumulate), trainer.accumulate
    if device.type == "cpu" and any(own.in_batch_negatives for own in subtasks_of(task).values()):
        size = config.served.samples_per_contrast or step
        size = dividing(step, size, config.task.negatives_per_step)
        return size, -(-step // size)
    return None


def largest(step: int, peak: Callable[[int], int], room: float) -> tuple[int, int]:
    """The most samples of a step, a whole part of them, whose pass has room, and what a pass of all of them takes.

    Two predictions do: each further sample takes as much as the one before, or more, so that what lies between is at most on the
    line from one sample to all.

    Args:
        step: samples of a step.
        peak: of samples of a pass, the bytes that the training takes.
        room: bytes that it may take.
    """
    whole = peak(step)
    if whole <= room or step == 1:
        return step, whole
    one = peak(1)
    most = 1 + (room - one) / max(1, whole - one) * (step - 1)
    return next((size for size in divisors(step) if size <= most), 1), whole


def dividing(step: int, most: int, negatives: int | None) -> int:
    """The most samples of a pass that divide a step and, where `task.negatives_per_step` is set, what each process has of it."""
    if negatives is None:
        return most
    own = negatives // count()
    return next((size for size in divisors(step) if size <= most and own % size == 0), 1)


def divisors(step: int) -> Iterator[int]:
    """The numbers that divide a step, largest first."""
    return (size for size in range(step, 0, -1) if step % size == 0)


def tried_on_device(step: int, size: int, run: Callable[[int], None]) -> int:
    """The samples of a pass that a device does have room for: what was predicted, or the largest part of it that runs.

    Args:
        step: samples of a step.
        size: samples of a pass that are tried first.
        run: runs the longest batch of so many samples, and raises `torch.OutOfMemoryError` where there is no room for it.

    Raises:
        UserError: there is no room for one sample.
    """
    for candidate in divisors(step):
        if candidate > size:
            continue
        try:
            run(candidate)
            return candidate
        except torch.OutOfMemoryError:
            log.warning("Batch: a pass of %d samples has no room on the device", candidate)
    raise UserError(
        "a pass of one sample has no room on the device: set trainer.gradient_checkpointing=true, a smaller task.max_length, "
        "model.quantize=8, or adapters in later layers only"
    )


def longest_batch(samples: Sequence[Sample], size: int) -> list[Sample]:
    """So many samples, those with the most text first, by its characters."""
    lengths = [sum(map(len, texts_of([sample]))) for sample in samples]
    order = sorted(range(len(samples)), key=lambda place: -lengths[place])
    return [samples[place] for place in order[:size]]


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Let the error of a device that has no room be one and the same: Apple's is a plain `RuntimeError`."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


def run_longest(
    task: Task,
    model: nn.Module,
    samples: Sequence[Sample],
    size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Run the longest batch of so many samples forward and backward, and leave everything as it was.

    Args:
        task: the task.
        model: the model, on the device.
        samples: the training samples.
        size: samples of the batch.
        device: where the model is.
        autocast: the context of forward passes.

    Raises:
        torch.OutOfMemoryError: there is no room for it.
    """
    moving = {name: buffer.clone() for name, buffer in moving_buffers(model).items()}
    train_mode(model)
    try:
        with rng.preserved(), out_of_memory():
            batch = move(task.collate(longest_batch(samples, size)), device)
            with autocast():
                loss = task.loss(batch)
            if loss.requires_grad:
                loss.backward()
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in moving_buffers(model).items():
            buffer.copy_(moving[name])
        if device.type != "cpu":
            getattr(torch, device.type).empty_cache()
