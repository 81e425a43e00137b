"""Where a training stands, as numbers that fit into JSON, and what it comes to in the end."""

from __future__ import annotations

from dataclasses import dataclass

from vlatrain.tasks.base import Evaluation


@dataclass
class Progress:
    """Where a training stands. Everything that later steps depend on beside weights, optimizer and random states.

    Attributes:
        step: optimizer steps done, which is also the position in the data (`order.py`).
        evaluated: step of the last evaluation; -1: none yet.
        best_step: step of the best one; None: none yet.
        best_metric: its headline metric, percent.
        worse: evaluations since then that were no better.
        evaluations: how many there have been.
        frozen: the scores of the frozen model; None: they were not asked for, or are not there yet.
        pruned: step at which it was found to be behind the other jobs of its sweep; None: it was not.
        overflows: steps in a row that fp16's loss scaling left out.
        loss_sum: sum of the losses of the steps since the last record of metrics.
        loss_steps: number of these steps.
        samples: samples seen.
        seconds: wall seconds, with evaluations and saving, of all sessions of the run.
        timed_samples: samples of the steps whose time counts: all but the first of a session, which warms up.
        timed_seconds: time of these steps.
        eval_seconds: wall seconds of all evaluations.
        eval_cost: wall seconds that one takes, as last measured; None: not measured yet.
        next_evaluation: with `trainer.eval_share`, the step of the next evaluation; None: it is the last one, or not decided.
    """

    step: int = 0
    evaluated: int = -1
    best_step: int | None = None
    best_metric: float | None = None
    worse: int = 0
    evaluations: int = 0
    frozen: dict[str, float] | None = None
    pruned: int | None = None
    overflows: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    timed_samples: int = 0
    timed_seconds: float = 0.0
    eval_seconds: float = 0.0
    eval_cost: float | None = None
    next_evaluation: int | None = None


@dataclass(frozen=True)
class Result:
    """What a training came to.

    Attributes:
        steps: optimizer steps done.
        epochs: the same in passes over the training data.
        samples: training samples seen.
        stopped_early: whether it ended before its last step.
        pruned: step at which it was found to be behind the other jobs of its sweep; None: it was not.
        resumed_from: step of the checkpoint this session continued from; None: it started anew.
        best_step: step whose weights the model has now and the adapter folder holds.
        evaluations: how many there were; the best step is that of the best one.
        frozen: the scores of the frozen model, where they were asked for.
        evaluation: evaluation of these weights; None without evaluation samples.
        samples_per_s: training speed in the steady state, without evaluation and saving.
        wall_seconds: duration of all sessions with everything.
        peak_mb: largest memory in MB (10^6 bytes): of the GPU, else of the process.
        device: device type, with the GPU's name.
        precision: fp32, bf16 or fp16.
        processes: number of processes.
        frozen_hash: hash over the frozen weights and buffers, equal before and after.
    """

    steps: int
    epochs: float
    samples: int
    stopped_early: bool
    pruned: int | None
    resumed_from: int | None
    best_step: int
    evaluations: int
    frozen: dict[str, float] | None
    evaluation: Evaluation | None
    samples_per_s: float
    wall_seconds: float
    peak_mb: float
    device: str
    precision: str
    processes: int
    frozen_hash: str
