"""The training loop: one for all tasks, methods and backbones.

`Loop.run` is the story; the methods below it are its sentences, in the order they are told. What each stands on has its
own file: the order of the samples (order.py), loading (batches.py), what is frozen (modes.py), learning rates
(optimizer.py), device and precision (precision.py), signals (signals.py), checkpoints (checkpoints.py).
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vlatrain.config import TrainConfig, UserError
from vlatrain.config.files import replace_folder
from vlatrain.config.optim import Group
from vlatrain.data.sample import Sample
from vlatrain.reporting.records import finite, in_a_line
from vlatrain.runs import RunFolder, config_text
from vlatrain.tasks.base import Batch, Batches, Evaluation, Task, move
from vlatrain.training import rng
from vlatrain.training.batches import SharedBatches, training_batches
from vlatrain.training.checkpoints import Checkpoints
from vlatrain.training.contrast import Contrast, passes_together
from vlatrain.training.display import SILENT, Display, Sink, Track
from vlatrain.training.eval_schedule import EvalSchedule, tried
from vlatrain.training.fitting import IN_EVALUATION, run_longest, tried_on_device
from vlatrain.training.lowering import Lowering
from vlatrain.training.modes import (
    cast_trunk,
    checkpoint_gradients,
    combined,
    compile_layers,
    frozen_hashes,
    keep_from_overflow,
    moving_buffers,
    refuse_moved,
    train_mode,
    trainable,
)
from vlatrain.training.optimizer import make_optimizer, rate, set_rates, with_new_head
from vlatrain.training.order import Order
from vlatrain.training.outcomes import Outcome, Outcomes, not_finite
from vlatrain.training.precision import (
    DTYPES,
    choose_precision,
    make_accelerator,
    peak_memory_mb,
    reset_peak_memory,
)
from vlatrain.training.processes import agree, average_gradients, broadcast, from_main, gather, refuse_differing
from vlatrain.training.progress import Progress, Result
from vlatrain.training.resume import Checkpointer, identity
from vlatrain.training.sharding import shard
from vlatrain.training.shares import EvaluationStopped
from vlatrain.training.signals import Interrupted, Signals, name_of, named
from vlatrain.training.stopwatch import Stopwatch
from vlatrain.training.validation import mean_loss, without_adapters

log = logging.getLogger("vlatrain")

OVERFLOWS = 25  # steps in a row that fp16's loss scale may need to come down; more means that it never will
OVERFLOWED = (
    "Step %d: gradients overflow in fp16: the step is left out, and losses are scaled by %g, and by less until they fit"
)


@dataclass(frozen=True)
class Trained:
    """What is trained, and what the loop must know of it.

    Attributes:
        model: the model. What requires gradients is trained; with nothing to train, the loop only evaluates.
        group_of: the parameter group of a trained parameter, by its name.
        save_adapter: writes what was trained into an existing, empty folder; None: there is nothing to write.
        layers: the layers of the towers, for gradient checkpointing and compilation.
        within: entered for each optimizer step (from 0), all its passes included; evaluations are outside.
        prune: asked after an evaluation, with its step: whether to end here.
        scored_frozen: called with the evaluation of the frozen model, where that is asked for.
    """

    model: nn.Module
    group_of: Callable[[str], Group]
    save_adapter: Callable[[Path], None] | None = None
    layers: Sequence[nn.Module] = ()
    within: Callable[[int], AbstractContextManager[Any]] = nullcontext
    prune: Callable[[int], bool] = lambda step: False
    scored_frozen: Callable[[Evaluation], object] = lambda evaluation: None


class Loop:
    """A training, from wherever it stands to its end.

    Args:
        config: the whole configuration; used: `optim`, `trainer`, `seed`, `resume`.
        task: the task; its `loss` and `evaluate` run the model.
        trained: the model, and how it is trained.
        train: training samples, at least one unless nothing is trained.
        eval: samples of the evaluations; may be empty: then the last weights count as the best.
        folder: the run folder; `checkpoints/` and `adapter/` are written there.
        display: shows progress.
        sinks: take the records of metrics; whoever made them closes them.
        tries: whether the longest batch is run first, and `trainer.batch_size` lowered until there is room for it; `config`
            then has what was found.

    Raises:
        UserError: device, precision, schedule or parameter groups that cannot be had here.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        trained: Trained,
        train: Sequence[Sample],
        eval: Sequence[Sample],
        folder: Path,
        display: Display = SILENT,
        sinks: Sequence[Sink] = (),
        tries: bool = False,
    ) -> None:
        self.config, self.trainer = config, config.trainer
        self.task, self.trained, self.train, self.eval = task, trained, train, eval
        self.model = model = trained.model
        self.folder, self.display, self.sinks = folder, display, sinks
        self.progress = Progress()
        self.signals = Signals(named(self.trainer.signal))
        self.stopping = 0  # signal on which all processes have agreed to stop
        self.saved = -1  # step of the last checkpoint
        self.resumed_from: int | None = None
        self.best_evaluation: Evaluation | None = None
        self.began = self.logged_at = time.perf_counter()
        self.logged_samples = self.session_steps = 0
        self.loss = self.norm = 0.0  # of the last step that has been read

        self.accelerator = make_accelerator(self.trainer)
        self.device = self.accelerator.device
        self.precision = choose_precision(self.trainer.precision, self.device)
        self.parameters = trainable(model)
        self._prepare_model(trained.layers)
        if tries:
            self.config = config = self._tried_passes()
            self.trainer = config.trainer
        self.order = Order(
            max(1, len(train)),
            self.trainer.samples_per_pass,
            self.trainer.passes_per_step,
            self.accelerator.num_processes,
            config.seed,
        )
        epochs = self.trainer.epochs * self.order.steps_per_epoch
        self.total = 0 if not self.parameters else epochs if self.trainer.max_steps is None else self.trainer.max_steps
        self.schedule = EvalSchedule(
            self.trainer.eval_every or self.order.steps_per_epoch, self.trainer.eval_share, self.total,
            self.order.step_size,
        )  # fmt: skip
        known = identity(train, self.order, self.total, self.parameters, combined(self.frozen))
        refuse_differing(known | {"precision": self.precision})  # as no frozen weight is sent, all must have the same
        broadcast(parameter.data for parameter in self.parameters.values())
        self.raw_optimizer: torch.optim.Optimizer | None = None
        if self.parameters:
            self.raw_optimizer = make_optimizer(
                self.parameters, with_new_head(config, self.parameters, trained.group_of), trained.group_of
            )
            self.optimizer = self.accelerator.prepare(self.raw_optimizer)
        self.together = passes_together(config, self.accelerator.num_processes)
        self.contrast = (
            Contrast(task, self.accelerator, self._computing, self.moving) if config.task.negatives_per_step else None
        )
        self.outcomes = Outcomes(
            self.raw_optimizer, late=self.device.type == "cuda" and self.accelerator.scaler is None
        )
        self.checkpointer = Checkpointer(
            Checkpoints(RunFolder(folder).checkpoints, self.trainer.keep), self.accelerator, model, self.parameters,
            self.raw_optimizer, known, config_text(config),
        )  # fmt: skip

    def _prepare_model(self, layers: Sequence[nn.Module]) -> None:
        if self.precision == "fp16":
            keep_from_overflow(self.model)
        if self.precision != "fp32" and self.device.type != "cpu":
            cast_trunk(self.model, DTYPES[self.precision], self.trainer.low_norms)
        if self.trainer.gradient_checkpointing:
            checkpoint_gradients(self.model, layers, self.trainer.compile)
        if self.trainer.compile:
            compile_layers(layers)
        if self.trainer.shard:
            self.frozen = frozen_hashes(self.model)
            shard(self.model, layers, self.device, self.frozen)
            self.held = frozen_hashes(self.model)
        else:
            self.model.to(self.device)
            self.held = self.frozen = frozen_hashes(self.model)
        self.moving = moving_buffers(self.model)
        self.lowering = Lowering(self.model)
        reset_peak_memory(self.device)

    def _tried_passes(self) -> TrainConfig:
        """The configuration with passes that the device has room for; of several processes, all have room."""
        trainer = self.trainer
        step = trainer.samples_per_pass * trainer.passes_per_step

        def run(size: int) -> None:
            run_longest(self.task, self.model, self.train, size, self.device, self.accelerator.autocast)

        size = min(gather(tried_on_device(step, trainer.samples_per_pass, run)))
        return replace(self.config, trainer=replace(trainer, batch_size=size, accumulate=step // size))

    @property
    def uses(self) -> dict[str, int]:
        """By split, how often each sample is seen."""
        return {
            "train": math.ceil(self.total / self.order.steps_per_epoch),
            "eval": max(1, math.ceil(self.total / self.schedule.every)) * (2 if self.trainer.eval_loss else 1),
            "test": 1,
        }

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        return f"in step {self.progress.step + 1} of {self.total}"

    def run(self) -> Result:
        """Train to the end, continuing the folder's last checkpoint if there is one and `resume` says so.

        Returns:
            what it came to. The model then has the best weights, and `adapter/` holds them.

        Raises:
            UserError: a checkpoint that does not fit or cannot be written, a loss or gradient that is not finite.
            Interrupted: SIGTERM or Ctrl-C, after saving.
        """
        with self.signals:
            rng.seed_everything(self.config.seed, self.accelerator.process_index)
            self._resume()
            for sink in self.sinks:
                sink.begin(self.progress.step)
            if self.trainer.eval_frozen and self.progress.frozen is None and self.eval:
                self._evaluate_frozen()
            with self.display.track("training", self.total, self.progress.step) as track:
                self._train(track)
            return self._finish()

    def _train(self, track: Track) -> None:
        steps = range(self.progress.step, self.total)
        rank = self.accelerator.process_index
        passes = training_batches(
            self.order, self.train, self.task.collate, steps, rank, self.trainer.loaders, self.device
        )
        train_mode(self.model)
        with closing(passes):  # whatever happens, no worker is left behind
            while True:
                if self._trial_due() and not self.stopping:
                    self._try_evaluation()
                if self._evaluation_due() and not self.stopping:
                    self._evaluate()
                if self._save_due() or (self.stopping and self.saved != self.progress.step):
                    self._save()
                if self.stopping:
                    self._leave()
                if self._over():
                    return
                with self.trained.within(self.progress.step):
                    self._step(passes, track)

    def _over(self) -> bool:
        return self.progress.step >= self.total or self._patience_over() or self.progress.pruned is not None

    def _patience_over(self) -> bool:
        return 0 < self.trainer.patience <= self.progress.worse

    # One optimizer step

    def _step(self, passes: Iterator[tuple[Batch, float]], track: Track) -> None:
        started = time.perf_counter()
        step, progress = self.progress.step, self.progress
        rates = set_rates(self.raw_optimizer, rate(step, self.total, self.config.optim))
        losses: list[Tensor] = []
        ids: list[list[str]] = []
        left = len(self.order.micro_batches(step))
        while left:
            group = [next(passes) for _ in range(min(left, self.together))]
            left -= len(group)
            losses.append(self.contrast(group) if self.contrast else self._pass(*group[0]))
            ids.append([str(own) for batch, _ in group for own in batch["ids"]])
        average_gradients(list(self.parameters.values()))
        broadcast(self.moving.values())  # a fully trained batch norm's: the first process's are the ones that are saved
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), self.config.optim.clip or math.inf)
        self.outcomes.add(Outcome(step + 1, self._values(losses, norm), losses, ids))
        self._read(everything=not self.outcomes.late)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        samples = len(self.order.step(step))
        progress.step += 1
        progress.samples += samples
        self.session_steps += 1
        if self.session_steps > 1:
            progress.timed_samples += samples
            progress.timed_seconds += time.perf_counter() - started
        logs = progress.step % self.trainer.log_every == 0 or progress.step == self.total
        # of several processes, all read alike, to stop after the same step
        asked = self.signals.received and self.accelerator.num_processes == 1
        if logs or asked or self.stopping or self._trial_due() or self._evaluation_due() or self._save_due():
            self._read(everything=True)
        track.advance(1, loss=f"{self.loss:.4f}", speed=self._speed(), peak=f"{peak_memory_mb(self.device):,.0f} MB")
        if logs:
            self._record(rates, self.norm)

    def _pass(self, batch: Batch, weight: float) -> Tensor:
        """Add a micro-batch's gradients; its loss, weighted."""
        with self._computing():
            loss = self.task.loss(move(batch, self.device))
        self.accelerator.backward(loss * weight)
        return loss.detach().float() * weight

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with self.accelerator.autocast(), self.lowering:
            yield

    def _values(self, losses: list[Tensor], norm: Tensor) -> Tensor:
        """Loss of a step and signal, summed over all processes, and gradient norm: (3,), on the device."""
        received = torch.full((), float(self.signals.received), device=self.device)
        values = torch.stack([torch.stack(losses).sum(), received])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, "sum")
        return torch.cat([values, norm.to(values.dtype)[None]])

    def _read(self, everything: bool) -> None:
        """Take note of what steps came to: of everything, or of what need not be waited for.

        Raises:
            UserError: a loss or gradient that is not finite.
        """
        for outcome in self.outcomes.due(everything):
            loss, signals, self.norm = outcome.read()
            self.loss = loss / self.accelerator.num_processes
            if signals:  # some process has got one
                self.stopping = self.signals.received or signal.SIGTERM
            self.progress.overflows = 0 if math.isfinite(self.norm) else self.progress.overflows + 1
            # fp16: the scaler leaves such a step out and lowers its scale
            scaler = self.accelerator.scaler
            passes = scaler is not None and self.progress.overflows <= OVERFLOWS
            if not (math.isfinite(self.loss) and (math.isfinite(self.norm) or passes)):
                raise not_finite(outcome, self.loss, self.norm)
            if scaler is not None and self.progress.overflows == 1:
                log.info(OVERFLOWED, outcome.step, scaler.get_scale() * scaler.get_backoff_factor())
            self.progress.loss_sum += self.loss
            self.progress.loss_steps += 1

    def _speed(self) -> str:
        timed = self.progress.timed_seconds
        return f"{self.progress.timed_samples / timed:,.1f} samples/s" if timed else "..."

    def _record(self, rates: dict[str, float], norm: float) -> None:
        progress, now = self.progress, time.perf_counter()
        fresh = progress.samples - self.logged_samples
        record = {
            "step": progress.step,
            "epoch": round(progress.step / self.order.steps_per_epoch, 4),
            "loss": progress.loss_sum / progress.loss_steps,
            "lr": rates,
            "grad_norm": norm if math.isfinite(norm) else None,  # JSON has no infinity
            "samples_per_s": round(fresh / max(now - self.logged_at, 1e-9), 2),
            "peak_mb": round(peak_memory_mb(self.device), 1),
            "seconds": round(self._seconds(), 2),
        }
        progress.loss_sum, progress.loss_steps = 0.0, 0
        self.logged_at, self.logged_samples = now, progress.samples
        for sink in self.sinks:
            sink.write(record)

    def _seconds(self) -> float:
        return self.progress.seconds + time.perf_counter() - self.began

    # Evaluation

    def _trial_due(self) -> bool:
        return bool(self.eval) and self.schedule.trial_due(self.progress)

    def _evaluation_due(self) -> bool:
        due = self._over() or self.schedule.due(self.progress)
        return bool(self.eval) and due and self.progress.evaluated != self.progress.step

    def _evaluate(self) -> None:
        started = time.perf_counter()
        evaluation = self._evaluation(self.eval, self.trainer.samples_per_evaluation_pass)
        if evaluation is None:
            return
        seconds = time.perf_counter() - started
        self.schedule.plan(self.progress, seconds, seconds)
        progress, metric = self.progress, evaluation.metrics[self.task.metric]
        # all have scored the same results, but the first one's word counts, lest rounding make them disagree
        metric = from_main(metric)
        progress.evaluated = progress.step
        progress.evaluations += 1
        if progress.best_metric is None or not metric <= progress.best_metric:
            progress.best_metric, progress.best_step, progress.worse = metric, progress.step, 0
            self.best_evaluation = evaluation
        else:
            progress.worse += 1
        best = " (best)" if not progress.worse else ""
        log.info("Step %d of %d: %s%s", progress.step, self.total, in_a_line(self.config, evaluation), best)
        record = {"step": progress.step, "epoch": round(progress.step / self.order.steps_per_epoch, 4)}
        loss = {} if evaluation.loss is None else {"eval/loss": finite(evaluation.loss)}
        for sink in self.sinks:
            sink.write(record | {f"eval/{name}": value for name, value in evaluation.metrics.items()} | loss)
        if self._patience_over():
            log.info("No better for %d evaluations: stopping early", progress.worse)
        elif not self._over() and from_main(self.trained.prune(progress.step)):
            progress.pruned = progress.step
            log.info("Behind the other jobs of the sweep: stopping early")

    def _evaluate_frozen(self) -> None:
        """Evaluate the model without what is trained, once, before the first step."""
        if self.progress.step:
            log.warning(
                "trainer.eval_frozen: this training began without it, and its weights have moved: adapter=none is the frozen model"
            )
            return
        with without_adapters(self.model):
            evaluation = self._evaluation(self.eval, self.trainer.samples_per_evaluation_pass)
        if evaluation is None:  # a signal; the training stops before its first step
            return
        self.progress.frozen = dict(evaluation.metrics)
        log.info("The frozen model: %s", in_a_line(self.config, evaluation))
        for sink in self.sinks:
            sink.write(
                {"step": 0, "epoch": 0.0} | {f"frozen/{name}": value for name, value in evaluation.metrics.items()}
            )
        self.trained.scored_frozen(evaluation)

    def _try_evaluation(self) -> None:
        """Evaluate a few samples, for what it takes."""
        stride, size = tried(len(self.eval), self.trainer.samples_per_evaluation_pass, self.accelerator.num_processes)
        started, watch = time.perf_counter(), Stopwatch(self.device)
        few = [self.eval[place] for place in range(0, len(self.eval), stride)]
        if self._evaluation(few, size, watch) is None:
            return
        cost = watch.seconds * len(self.eval) / len(few)
        self.schedule.plan(self.progress, time.perf_counter() - started, cost)
        then = self.progress.next_evaluation
        log.info(
            "An evaluation takes about %.1f s, so there is one %s",
            cost, "after the last step alone" if then is None else f"after step {then}",
        )  # fmt: skip

    def _evaluation(self, samples: Sequence[Sample], size: int, watch: Stopwatch | None = None) -> Evaluation | None:
        """Evaluate the weights as they are, in batches of a size. None, and `stopping` set, if a signal came."""

        def of(size: int) -> Batches:
            """Batches of a size."""
            interrupted = lambda: bool(self.signals.received)  # noqa: E731
            batches = SharedBatches(self.device, size, self.trainer.loaders, self.display, interrupted=interrupted)
            return watch.timed(batches) if watch else batches

        started = time.perf_counter()
        self.model.eval()
        evaluation = None
        try:
            with rng.preserved(), torch.no_grad(), self.accelerator.autocast():
                evaluation = self.task.evaluate(samples, of(size))
                if self.trainer.eval_loss:  # in the passes of training, whose samples may be each other's negatives
                    passes = of(min(size, self.trainer.samples_per_pass))
                    evaluation = replace(evaluation, loss=mean_loss(self.task, samples, passes))
        except EvaluationStopped:
            pass
        except RuntimeError as error:  # Apple's, when it has no room, is a plain one
            error.add_note(IN_EVALUATION)
            raise
        finally:
            train_mode(self.model)
        signals = gather(self.signals.received)
        self.stopping = self.stopping or max(signals)
        self.logged_at += time.perf_counter() - started  # speed is of training alone
        return None if evaluation is None or any(signals) else evaluation

    # Saving, stopping, continuing

    def _save_due(self) -> bool:
        step, every = self.progress.step, self.trainer.save_every or self.order.steps_per_epoch
        due = self._over() or step % every == 0 or self.progress.best_step == step
        return step > 0 and due and self.saved != step

    def _save(self) -> None:
        self.checkpointer.save(self.progress, self._seconds())
        self.saved = self.progress.step

    def _resume(self) -> None:
        if self.config.resume != "auto":
            if self.checkpointer.checkpoints.steps():
                raise UserError(
                    f"{self.folder} holds a begun run; continue it with resume=auto, or choose another run.name"
                )
            return
        progress = self.checkpointer.resume()
        if progress is not None:
            self.progress = progress
            self.resumed_from = self.saved = progress.step
            self.logged_samples = progress.samples
            log.info("Continuing after step %d of %d", progress.step, self.total)
            if self.total > (planned := self.checkpointer.planned):
                before, now = (rate(progress.step, steps, self.config.optim) for steps in (planned, self.total))
                log.info(
                    "There were to be %d steps: the learning rate goes on as in a training of %d, at %.0f %% of its peak (it was "
                    "at %.0f %%)",
                    planned, self.total, 100 * now, 100 * before,
                )  # fmt: skip

    def _leave(self) -> NoReturn:
        raise Interrupted(
            self.stopping,
            f"Stopped by {name_of(self.stopping)} after step {self.progress.step} of {self.total}; saved. "
            f"To continue: the same command with resume=auto run.dir={self.folder}",
        )

    # The end

    def _finish(self) -> Result:
        """Back to the best weights; write them; make sure that nothing else has moved."""
        progress = self.progress
        best = progress.step if progress.best_step is None else progress.best_step
        if best != progress.step and not from_main(self.checkpointer.load_weights(best)):
            best, self.best_evaluation = progress.step, None
        self.model.eval()
        self._write_adapter()  # first: whatever else may fail here, the training is not lost
        if self.eval and self.best_evaluation is None:  # it was found before the last interruption
            self.best_evaluation = self._evaluation(self.eval, self.trainer.samples_per_evaluation_pass)
            if self.stopping:
                self._leave()
            self.model.eval()
        refuse_moved(self.held, self.model)
        gpu = self.device.type == "cuda"
        return Result(
            steps=progress.step,
            epochs=progress.step / self.order.steps_per_epoch,
            samples=progress.samples,
            stopped_early=progress.step < self.total,
            pruned=progress.pruned,
            resumed_from=self.resumed_from,
            best_step=best,
            evaluations=progress.evaluations,
            frozen=progress.frozen,
            evaluation=self.best_evaluation,
            samples_per_s=progress.timed_samples / progress.timed_seconds if progress.timed_seconds else 0.0,
            wall_seconds=self._seconds(),
            peak_mb=peak_memory_mb(self.device),
            device=f"cuda ({torch.cuda.get_device_name(self.device)})" if gpu else "cpu",
            precision=self.precision,
            processes=self.accelerator.num_processes,
            frozen_hash=combined(self.frozen),
        )

    def _write_adapter(self) -> None:
        problems: list[str] = []
        save = self.trained.save_adapter
        if self.accelerator.is_main_process and save is not None:
            try:
                replace_folder(RunFolder(self.folder).adapter, save)
            except UserError as error:
                problems = error.problems
        agree(problems)
