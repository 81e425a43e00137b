"""How fast samples go through an evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from vlatrain.tasks.base import Batches, Item, Made, Result


class Stopwatch:
    """Times the batches of an evaluation, loading included.

    An evaluation may go through its samples more than once (retrieval: the images, then the texts): all of it counts. But the first
    batch of a pass warms up; where there are several, its samples are taken to be as fast as the others. Of several processes each
    times its own share, with what it waits for the others.

    Args:
        device: where the batches are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0

    def speed(self, samples: int) -> float:
        """Samples a second, of so many that were evaluated; 0 if nothing was timed."""
        return samples / self.seconds if self.seconds else 0.0

    def timed(self, batches: Batches) -> Batches:
        """The same batches, timed."""
        return _Timed(batches, self)

    def add(self, timings: Sequence[tuple[int, float]]) -> None:
        """Take the samples and the seconds of each batch of a pass."""
        counted = timings[1:] or timings
        pace = sum(seconds for _, seconds in counted) / max(1, sum(count for count, _ in counted))
        self.seconds += pace * sum(count for count, _ in timings)


@dataclass(frozen=True)
class _Timed:
    batches: Batches
    watch: Stopwatch

    def __call__(
        self, samples: Sequence[Item], collate: Callable[[Sequence[Item]], Made], compute: Callable[[Made], Result]
    ) -> Iterator[Result]:
        found: list[tuple[int, float]] = []  # samples and seconds of each batch
        started = time.perf_counter()

        def watched(batch: Made) -> Result:
            nonlocal started
            result = compute(batch)
            if self.watch.device.type != "cpu":
                torch.accelerator.synchronize(self.watch.device)
            now = time.perf_counter()
            found.append((len(batch["ids"]), now - started))
            started = now
            return result

        yield from self.batches(samples, collate, watched)
        self.watch.add(found)

    def map(self, compute: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        return self.batches.map(compute, items)
