"""Batches of samples on a device: for the training steps, and for evaluation and prediction."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_all_start_methods
from typing import Any, TypeVar

import psutil
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from vlatrain.config import UserError
from vlatrain.data.sample import Sample
from vlatrain.tasks.base import Collate, Item, Made, Result, move
from vlatrain.training.display import SILENT, Display
from vlatrain.training.journal import Journal
from vlatrain.training.order import Order
from vlatrain.training.processes import from_main
from vlatrain.training.rng import seeded_cpu
from vlatrain.training.shares import shared

log = logging.getLogger("vlatrain")

GRACE = 30  # seconds that a worker lives on after SIGTERM
PATROL = 5  # seconds without a batch after which its processes are looked after
STOPPED_FOR, SILENT_FOR = 30.0, 1800.0  # seconds that they may be stopped, and silent
TOLD_AFTER = 60.0  # seconds of silence that are told of
PREFETCH = 2  # batches that each worker has ready

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class SharedBatches:
    """What a task's `evaluate` computes its results by (`vlatrain.tasks.base.Batches`): each process computes every n-th batch.

    Attributes:
        device: where the tensors of a batch go.
        batch_size: samples per batch, with as many processes as there may be; the last may be smaller.
        workers: data-loading processes of each process.
        display: where progress is shown.
        label: what the progress is called.
        interrupted: asked before every batch; true in any process ends the iteration with `EvaluationStopped`, in all.
        local: whether this process computes all batches itself.
        journal: keeps the results, and knows those of before; None: none are kept.
    """

    device: torch.device | str
    batch_size: int
    workers: int = 0
    display: Display = SILENT
    label: str = "evaluation"
    interrupted: Callable[[], bool] = lambda: False
    local: bool = False
    journal: Journal | None = None

    def __call__(
        self, samples: Sequence[Item], collate: Callable[[Sequence[Item]], Made], compute: Callable[[Made], Result]
    ) -> Iterator[Result]:
        """What `compute` returns of each batch, in order, each sample once."""
        total, keys = len(samples), chunks(len(samples), self.batch_size)

        def own(numbers: range) -> Iterator[Result]:
            mine = [keys[number] for number in numbers]
            return map(compute, batches_by(mine, samples, collate, self.workers, self.device))

        with self.display.track(self.label, total) as progress:
            for key, result in zip(keys, self._shared(own, len(keys)), strict=True):
                progress.advance(len(key))
                yield result

    def map(self, compute: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """What `compute` returns of each item, in order."""
        return self._shared(lambda numbers: (compute(items[number]) for number in numbers), len(items))

    def _shared(self, own: Callable[[range], Iterator[Result]], total: int) -> Iterator[Result]:
        if self.journal is None:
            yield from shared(own, total, self.device, self.interrupted, self.local)
            return
        call, known = self.journal.begin(self.device)
        before = known if self.local else from_main(known)
        yield from before

        def later(numbers: range) -> Iterator[Result]:
            return own(range(numbers.start + len(before), numbers.stop + len(before), numbers.step))

        for result in shared(later, total - len(before), self.device, self.interrupted, self.local):
            self.journal.add(call, result)
            yield result


def chunks(total: int, size: int) -> list[range]:
    """The positions of each batch of so many; the last may be smaller."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def batches_by(
    keys: Sequence[range],
    samples: Sequence[Item],
    collate: Callable[[Sequence[Item]], Loaded],
    workers: int,
    device: torch.device | str,
) -> Generator[Loaded, None, None]:
    """What `collate` makes of the samples at each range of positions, in order, on the device. Close it when done."""
    for batch in _loaded(_Groups(samples, collate), keys, workers, device):
        yield move(_unwrap(batch), device)


def training_batches(
    order: Order,
    samples: Sequence[Sample],
    collate: Collate[Made],
    steps: range,
    rank: int,
    workers: int,
    device: torch.device,
) -> Generator[tuple[Made, float], None, None]:
    """The forward passes of the steps in one process, one after the other: batch on the CPU, and weight of its loss.

    One stream over all remaining epochs, so that workers are started once and read ahead over the end of an epoch.
    Close it when done: that ends the workers.
    """
    passes = _Passes(order, samples, collate, rank)
    keys = ((step, micro_batch) for step in steps for micro_batch in range(len(order.micro_batches(step, rank))))
    for weight, batch in _loaded(passes, keys, workers, device):
        yield _unwrap(batch), weight


class _Groups(Dataset[Any]):
    """Batches by a range of positions."""

    def __init__(self, samples: Sequence[Any], collate: Callable[[Sequence[Any]], Any]) -> None:
        self.samples, self.collate = samples, collate

    def __getitem__(self, positions: range) -> Any:
        return _collated(self.collate, [self.samples[position] for position in positions])


class _Passes(Dataset[Any]):
    """Micro-batches by step and number. What `collate` draws at random depends on these alone: not on workers, nor on
    what was loaded before."""

    def __init__(self, order: Order, samples: Sequence[Sample], collate: Collate[Any], rank: int) -> None:
        self.order, self.samples, self.collate, self.rank = order, samples, collate, rank

    def __getitem__(self, key: tuple[int, int]) -> tuple[float, Any]:
        step, number = key
        micro_batch = self.order.micro_batches(step, self.rank)[number]
        with seeded_cpu(self.order.seed, step, number, self.rank):
            return micro_batch.weight, _collated(self.collate, [self.samples[index] for index in micro_batch.indices])


def _collated(collate: Callable[[Sequence[Item]], Loaded], samples: list[Item]) -> Loaded | UserError:
    # returned, not raised: a loader would wrap it in the worker's traceback
    try:
        return collate(samples)
    except UserError as error:
        return error


def _unwrap(batch: Loaded | UserError) -> Loaded:
    if isinstance(batch, UserError):
        raise batch
    return batch


def _loader(dataset: Dataset[Any], keys: Iterable[Any], workers: int, device: torch.device | str) -> DataLoader[Any]:
    if workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else the tokenizers library complains of every fork
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        timeout=PATROL if workers else 0,
        prefetch_factor=PREFETCH if workers else None,
        # a fork shares the samples and the task with its backbone; other methods would pickle them for every worker
        multiprocessing_context="fork" if workers and "fork" in get_all_start_methods() else None,
        worker_init_fn=_outlast_signals,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # its own: a loader draws from it, and a resumed run starts one loader more
    )


def _loaded(dataset: Dataset[Any], keys: Iterable[Any], workers: int, device: torch.device | str) -> Iterator[Any]:
    """What a loader has, with a word where its processes give nothing for long, and an end where they never will.

    Raises:
        UserError: a process was killed, most often as memory ran out; or is stopped, or has given nothing for too long.
    """
    batches, waited = iter(_loader(dataset, keys, workers, device)), 0.0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            own = bool(getattr(batches, "_workers", ()))
            if own and "DataLoader worker" in str(error):
                _kill(batches)
                raise UserError(
                    f"trainer.workers={workers}: a process that loads images was killed ({' '.join(str(error).split())}), most "
                    "often as memory ran out: set fewer, then run the same again (a training: with resume=auto)"
                ) from error
            if not (own and "DataLoader timed out" in str(error)):
                raise
            waited += PATROL
            _patrol(batches, waited, workers)
            continue
        waited = 0.0
        yield batch


def _patrol(batches: Any, waited: float, workers: int) -> None:
    """Look after a loader's processes, which have given nothing for so many seconds."""
    processes = [worker.pid for worker in batches._workers]
    states = {pid: _state_of(pid) for pid in processes}
    stopped = [pid for pid, state in states.items() if state in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)]
    named = ", ".join(map(str, stopped or processes))
    if waited >= (STOPPED_FOR if stopped else SILENT_FOR):
        _kill(batches)
        what = "is stopped (by SIGSTOP or a debugger)" if stopped else "has loaded nothing"
        raise UserError(
            f"trainer.workers={workers}: process {named}, which loads images, {what} for {waited:.0f} s: see what stopped it and "
            "what its images lie on, or set 0, then run the same again (a training: with resume=auto)"
        )
    if stopped:
        log.warning("Data-loading process %s is stopped: kill -CONT %s lets it go on", named, named.replace(",", ""))
    elif waited >= TOLD_AFTER and waited % TOLD_AFTER < PATROL:
        log.warning("Data-loading process %s has loaded nothing for %.0f s", named, waited)


def _state_of(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return psutil.STATUS_DEAD


def _kill(batches: Any) -> None:
    """End a loader's processes, which may wait for what another one held, or are stopped: nothing else does."""
    if getattr(batches, "_worker_pids_set", False):  # else torch raises wherever the main thread is, as they end
        signal_handling._remove_worker_pids(id(batches))
        batches._worker_pids_set = False
    for worker in batches._workers:
        worker.kill()


def _outlast_signals(_: int) -> None:
    # Ctrl-C and a cluster's SIGTERM reach the whole process group, and the main process still needs its batches to finish
    # the step. But SIGTERM may also be its own last word to a worker that it could not end otherwise.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
