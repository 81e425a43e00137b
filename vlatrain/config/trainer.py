"""Configuration of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vlatrain.config.limits import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, SPLIT, Choice, OrAuto


@dataclass
class TrainerConfig:
    """The loop: how long, how large, how precise, how often.

    Attributes:
        epochs: passes over the training data.
        max_steps: optimizer steps; set, it overrides `epochs`.
        batch_size: samples per process and forward pass; auto: as many of the backbone's samples a step as there is room for, in
            the memory of the GPU, or in 4 GB on a CPU.
        eval_batch_size: the same in evaluation; null: twice `batch_size`.
        accumulate: forward passes per optimizer step; auto: with `batch_size=auto` those that make the backbone's samples a step,
            else 1. A number with `batch_size=auto` cuts the samples of a step into so many passes, whatever there is room for.
        precision: auto (bf16 on a GPU that has it, else fp16 there; fp32 on CPU), fp32, bf16 or fp16.
        tf32: on a GPU, compute what is fp32 with inputs of 10 bits (TF32): faster, less exact. Without it fp32 is fp32.
        deterministic: let torch compute with deterministic kernels alone: on a GPU the same seed then gives the same bits, slower.
            An operation that has none is refused by its name.
        low_norms: on a GPU in bf16 or fp16, let frozen layer norms put out that type, where autocast's put out fp32.
        device: auto (a GPU if there is one), cpu, cuda or mps (Apple's).
        gradient_checkpointing: recompute activations in the backward pass; less memory, more time.
        compile: `torch.compile` the backbone's layers.
        shard: of several processes, let each hold a shard of every layer's frozen weights, and have a layer whole only while it
            computes with it (FSDP2): for backbones that do not fit into the memory of one device.
        eval_every: evaluate every n optimizer steps; 0: once an epoch.
        eval_share: evaluate so often instead that evaluations take this share of the time, as measured; the last step's is always
            made. null: `eval_every` counts.
        eval_loss: compute the task's loss on the evaluation data too, at each evaluation: a pass more over it.
        eval_frozen: also evaluate the frozen model, once, before the first step: the scores that are to be bettered.
        save_every: write a checkpoint every n optimizer steps; 0: once an epoch.
        log_every: optimizer steps between lines of `metrics.jsonl`.
        keep: checkpoints kept before the last, to fall back to (the best and the last are always kept).
        patience: stop after this many evaluations without a better metric; 0: never.
        signal: an early warning that is taken like SIGTERM: USR1 or USR2 (Slurm: `--signal=USR1@120`); null: none.
        workers: data-loading processes; 0 loads in the training process; auto: on a CPU 0, on a GPU by what a pass takes to load.
        cache: whether the states before the first trainable layer are computed once and kept: auto (where that is faster and there
            is room), off, memory or disk. Where none of images are, auto and disk keep large images resized.
        cache_gb: most that all runs together may keep on disk, in GB.
        threads: CPU threads of torch; 0 leaves torch's choice.
    """

    epochs: Annotated[int, AT_LEAST_ONE] = 2
    max_steps: Annotated[int | None, AT_LEAST_ONE] = None
    batch_size: Annotated[int | str, OrAuto(AT_LEAST_ONE)] = 32
    eval_batch_size: Annotated[int | None, AT_LEAST_ONE] = None
    accumulate: Annotated[int | str, OrAuto(AT_LEAST_ONE)] = 1
    precision: Annotated[str, Choice("auto", "fp32", "bf16", "fp16")] = "auto"
    tf32: bool = False
    deterministic: bool = False
    low_norms: bool = False
    device: Annotated[str, Choice("auto", "cpu", "cuda", "mps")] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    shard: bool = False
    eval_every: Annotated[int, NOT_NEGATIVE] = 0
    eval_share: Annotated[float | None, SPLIT] = None
    eval_loss: bool = True
    eval_frozen: bool = False
    save_every: Annotated[int, NOT_NEGATIVE] = 0
    log_every: Annotated[int, AT_LEAST_ONE] = 10
    keep: Annotated[int, NOT_NEGATIVE] = 1
    patience: Annotated[int, NOT_NEGATIVE] = 0
    signal: Annotated[str | None, Choice("USR1", "USR2")] = None
    workers: Annotated[int | str, OrAuto(NOT_NEGATIVE)] = 0
    cache: Annotated[str, Choice("auto", "off", "memory", "disk")] = "auto"
    cache_gb: Annotated[float, POSITIVE] = 50.0
    threads: Annotated[int, NOT_NEGATIVE] = 0

    @property
    def samples_per_pass(self) -> int:
        """`batch_size`, once it is known."""
        assert isinstance(self.batch_size, int), "trainer.batch_size=auto has not been resolved"
        return self.batch_size

    @property
    def passes_per_step(self) -> int:
        """`accumulate`, once it is known."""
        assert isinstance(self.accumulate, int), "trainer.accumulate=auto has not been resolved"
        return self.accumulate

    @property
    def loaders(self) -> int:
        """`workers`, or none as long as that is not known."""
        return self.workers if isinstance(self.workers, int) else 0

    @property
    def samples_per_evaluation_pass(self) -> int:
        """`eval_batch_size`, or what it is by default."""
        return self.eval_batch_size or 2 * self.samples_per_pass
