"""Which samples make up which step, in which process: a pure function of the seed and the step.

Every epoch is its own seeded permutation of the samples, cut into optimizer steps of
`batch x accumulate x processes` samples. A step is cut into forward passes, and each pass into one micro-batch for
each process. So the position in the data *is* the step number: resuming in the middle of an epoch loads nothing twice
and skips nothing, and two processes with a batch of b see step by step the samples that one process with a batch of 2b
sees.

The last step of an epoch may hold fewer samples. Nothing is dropped: each micro-batch carries the weight that makes the mean
over processes of `weight x mean loss of the micro-batch`, summed over the passes, the mean over the samples of the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward pass that one process computes.

    Attributes:
        indices: positions in the list of samples; never empty.
        weight: factor on their mean loss; 0 where a process has no sample of its own left and repeats one.
    """

    indices: tuple[int, ...]
    weight: float


@dataclass
class Order:
    """The order of the samples.

    Attributes:
        samples: number of samples, at least 1.
        batch: samples per process and forward pass.
        accumulate: forward passes per optimizer step.
        processes: processes that share a step.
        seed: seed of the permutations.
    """

    samples: int
    batch: int
    accumulate: int = 1
    processes: int = 1
    seed: int = 0
    _epoch: tuple[int, torch.Tensor] = field(default=(-1, torch.empty(0)), repr=False)

    @property
    def step_size(self) -> int:
        """Samples of a full step."""
        return self.batch * self.accumulate * self.processes

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last may be a partial one."""
        return -(-self.samples // self.step_size)

    def step(self, step: int) -> list[int]:
        """Positions of the samples of a step, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._permutation(epoch)[within * self.step_size : (within + 1) * self.step_size].tolist()

    def micro_batches(self, step: int, rank: int = 0) -> list[MicroBatch]:
        """The forward passes of a step in one process. Every process has the same number of them."""
        samples = self.step(step)
        micro_batches = []
        for start in range(0, len(samples), self.batch * self.processes):
            together = samples[start : start + self.batch * self.processes]
            low, high = (len(together) * r // self.processes for r in (rank, rank + 1))
            weight = (high - low) * self.processes / len(samples)
            micro_batches.append(MicroBatch(tuple(together[low:high] or together[:1]), weight))
        return micro_batches

    def _permutation(self, epoch: int) -> torch.Tensor:
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._epoch = (epoch, torch.randperm(self.samples, generator=generator))
        return self._epoch[1]
