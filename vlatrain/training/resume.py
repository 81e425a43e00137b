"""What of a training goes into a checkpoint, and back: in every process, or in none."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from vlatrain.config import UserError
from vlatrain.data.content import content
from vlatrain.data.lazy import column
from vlatrain.data.sample import Sample
from vlatrain.injection.saved import differences, shapes_of
from vlatrain.runs import RunFolder
from vlatrain.training import rng
from vlatrain.training.checkpoints import Checkpoints, Saved
from vlatrain.training.modes import moving_buffers
from vlatrain.training.optimizer import load_optimizer, optimizer_tensors
from vlatrain.training.order import Order
from vlatrain.training.processes import agree, from_main, gather
from vlatrain.training.progress import Progress

IDS = 10_000  # ids of samples that are hashed at once

log = logging.getLogger("vlatrain")

STEPS, CONTENT = "steps", "texts or images of the training samples, or their order"  # keys of an identity


def identity(
    train: Sequence[Sample], order: Order, total: int, parameters: Mapping[str, nn.Parameter], frozen_hash: str
) -> dict[str, Any]:
    """What must be the same for a checkpoint to continue a training, as readable key and value; of `steps`, there may be more."""
    ids = hashlib.sha256()
    each, before = column(train, "id"), ""
    while block := list(islice(each, IDS)):
        ids.update((before + "\n".join(block)).encode())
        before = "\n"
    return {
        "training samples": f"{len(train)} ({ids.hexdigest()[:12]})",
        CONTENT: content(train),
        "samples per step": order.step_size,
        STEPS: total,
        "seed": order.seed,
        "trained parameters": sum(parameter.numel() for parameter in parameters.values()),
        "frozen weights": frozen_hash[:12],
    }


def course(file: Path) -> dict[str, Any]:
    """What is in `metrics.jsonl`, to which lines are only added: how many lines, and a hash of them."""
    data = file.read_bytes() if file.is_file() else b""
    return {"lines": data.count(b"\n"), "sha256": hashlib.sha256(data[: data.rfind(b"\n") + 1]).hexdigest()}


def _begins_with(file: Path, before: Mapping[str, Any] | None) -> bool:
    """Whether the first lines of a file are what they were; checkpoints of earlier versions do not say."""
    if before is None:
        return True
    data = file.read_bytes() if file.is_file() else b""
    first = b"".join(data.splitlines(keepends=True)[: before["lines"]])
    return bool(hashlib.sha256(first).hexdigest() == before["sha256"])


class Checkpointer:
    """Saves a training and brings it back.

    Args:
        checkpoints: where.
        accelerator: the processes, and fp16's loss scaler.
        model: the model.
        parameters: its trained parameters by name.
        optimizer: their optimizer; None if there are none.
        identity: see `identity`.
        config: the content of `config.yaml`, which can be restored from a checkpoint.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        accelerator: Accelerator,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer | None,
        identity: Mapping[str, Any],
        config: str,
    ) -> None:
        self.checkpoints, self.accelerator, self.model = checkpoints, accelerator, model
        self.parameters, self.optimizer, self.identity = parameters, optimizer, dict(identity)
        self.config = config
        self.planned = 0  # steps that the training was to have when the checkpoint was written that it continues

    def save(self, progress: Progress, seconds: float) -> None:
        """Write a checkpoint.

        Args:
            progress: where the training stands.
            seconds: wall seconds of the run so far.

        Raises:
            UserError: it cannot be written; in all processes.
        """
        states = gather(rng.capture())
        scaler = self.accelerator.scaler
        state = {
            "identity": self.identity,
            "config": self.config,
            "progress": asdict(progress) | {"seconds": seconds},
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": states,
            "history": course(self._history),
        }
        problems: list[str] = []
        if self.accelerator.is_main_process:
            tensors = {
                "trainable": {name: parameter.detach() for name, parameter in self.parameters.items()},
                "buffers": moving_buffers(self.model),
                "optimizer": optimizer_tensors(self.optimizer, self.parameters) if self.optimizer else {},
            }
            try:
                self.checkpoints.save(progress.step, tensors, state, progress.best_step)
            except UserError as error:
                problems = error.problems
        agree(problems)

    def resume(self) -> Progress | None:
        """Continue from the last whole checkpoint: weights, optimizer, scaler and random states are set.

        Returns:
            where it stands; None: there is no whole checkpoint.

        Raises:
            UserError: the checkpoint is of another training.
        """
        step: int | None = None
        if self.accelerator.is_main_process:
            found, damaged = self.checkpoints.latest()
            step = found.step if found else None
            before = "starting anew" if found is None else f"going back to the checkpoint of step {step}"
            for problem in damaged:
                log.warning("%s: %s", problem, before)
            if found and not _begins_with(self._history, found.state.get("history")):
                log.warning(
                    "%s: some of what was recorded up to step %d is lost, or has changed; it is left as it is",
                    self._history, found.step,
                )  # fmt: skip
        step = from_main(step)
        if step is None:
            return None
        try:
            saved = self.checkpoints.load(step)
        except ValueError as error:  # not in the first process, which has read it
            raise UserError(f"{error}; all processes must see the run folder of the first") from error
        self._refuse_other(saved)
        self._load_weights(saved)
        if self.optimizer is not None:
            load_optimizer(self.optimizer, self.parameters, saved.tensors["optimizer"])
        if self.accelerator.scaler is not None and saved.state["scaler"]:
            self.accelerator.scaler.load_state_dict(saved.state["scaler"])
        states = saved.state["random"]
        if len(states) == self.accelerator.num_processes:
            rng.restore(states[self.accelerator.process_index])
        else:
            log.warning(
                "There were %d processes, now %d: random draws differ", len(states), self.accelerator.num_processes
            )
        self.planned = int(saved.state["identity"][STEPS])
        return Progress(**saved.state["progress"])

    @property
    def _history(self) -> Path:
        return RunFolder(self.checkpoints.folder.parent).history

    def load_weights(self, step: int) -> bool:
        """Set the trained weights to those of a checkpoint. False, with a warning, if it is damaged or gone."""
        try:
            self._load_weights(self.checkpoints.load(step))
        except ValueError as error:
            log.warning("%s: the last weights are taken instead of the best", error)
            return False
        return True

    def _refuse_other(self, saved: Saved) -> None:
        then = saved.state["identity"]
        # what checkpoints of before do not say is not held against them
        differing = [
            f"{key}: {then[key]} there, {now} now"
            for key, now in self.identity.items()
            if now != then.get(key, now) and not (key == STEPS and now > then[key])
        ]
        if differing:
            raise UserError(
                f"{self.checkpoints.path(saved.step)} is of another training ({'; '.join(differing)}); "
                "choose another run.name"
            )

    def _load_weights(self, saved: Saved) -> None:
        own = {"trainable": self.parameters, "buffers": moving_buffers(self.model)}
        for file, wanted in own.items():
            if told := differences(shapes_of(saved.tensors[file]), shapes_of(wanted)):
                raise UserError(
                    f"{self.checkpoints.path(saved.step)}/{file}.safetensors does not fit the model: {told}"
                )
        with torch.no_grad():
            for file, wanted in own.items():
                for name, tensor in wanted.items():
                    tensor.copy_(saved.tensors[file][name])
