"""How fast samples go through an evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from vlatrain.data.sample import Sample
from vlatrain.tasks.base import Batches, Collate, Made


class Stopwatch:
    """Times the batches of an evaluation, loading included.

    An evaluation may go through its samples more than once (retrieval: the images, then the texts): all of it counts. But the first
    batch of a pass warms up; where there are several, its samples are taken to be as fast as the others.

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

        def watched(samples: Sequence[Sample], collate: Collate[Made]) -> Iterator[Made]:
            found: list[tuple[int, float]] = []  # samples and seconds of each batch
            started = time.perf_counter()
            for batch in batches(samples, collate):
                yield batch
                if self.device.type != "cpu":
                    torch.accelerator.synchronize(self.device)
                now = time.perf_counter()
                found.append((len(batch["ids"]), now - started))
                started = now
            counted = found[1:] or found
            pace = sum(seconds for _, seconds in counted) / max(1, sum(count for count, _ in counted))
            self.seconds += pace * sum(count for count, _ in found)

        return watched
