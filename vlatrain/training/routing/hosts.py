"""The runs of a router, loaded: those that can answer in one forward pass have one model, and each other one its own.

Frozen weights that are the same in several models are held once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from vlatrain.config import TaskConfig, TrainConfig, UserError
from vlatrain.injection.context import BASE, rows
from vlatrain.injection.routes import Route, one_pass
from vlatrain.runs import RunFolder
from vlatrain.tasks import Task
from vlatrain.training.lowering import lower_for_good
from vlatrain.training.precision import DTYPES
from vlatrain.training.setup import TrainingSetup, load_setup


@dataclass(frozen=True)
class Routed:
    """What was chosen for a sample.

    Attributes:
        best: name of the likeliest run.
        weights: by name, of the runs that are chosen; they add up to 1.
        abstains: whether the frozen model is to answer, by the task of the likeliest run.
    """

    best: str
    weights: Mapping[str, float]
    abstains: bool = False


@dataclass
class Host:
    """A loaded model with the adapters of one run, or of several.

    Attributes:
        setup: model, backbone, task.
        task: the task, with lengths that serve all of the runs.
        adapters: by the run's name, what its adapter is called in the model.
        goes_on: whether it can go on from what the reader has read.
    """

    setup: TrainingSetup
    task: Task
    adapters: dict[str, str] = field(default_factory=dict)
    goes_on: bool = False

    @property
    def mixes(self) -> bool:
        """Whether the rows of a pass have adapters of their own."""
        return len(self.adapters) > 1

    def key(self, routed: Routed) -> bool:
        """Samples with the same key go through the model in one pass."""
        return routed.abstains and not self.mixes

    @contextmanager
    def answering(self, chosen: Sequence[Routed]) -> Iterator[None]:
        """Let each row of a pass have what was chosen for it; without `mixes` that is the same for all."""
        model: Any = self.setup.model
        with ExitStack() as stack:
            if self.mixes:
                repeats = frozenset({1, self.task.config.decode.num_beams})
                stack.enter_context(rows(self.setup.backbone.model, [self._row(one) for one in chosen], repeats))
            elif chosen[0].abstains:
                stack.enter_context(model.disable_adapter())
            yield

    @property
    def can_abstain(self) -> bool:
        """Whether the adapters can be left out: what a head says that trained with them means nothing without."""
        return isinstance(self.setup.model, PeftModel) and self.task.generates

    def _row(self, routed: Routed) -> str | dict[str, float]:
        if routed.abstains:
            return BASE
        own = {self.adapters[name]: weight for name, weight in routed.weights.items() if name in self.adapters}
        total = sum(own.values())
        return {name: weight / total for name, weight in own.items()}


def load_hosts(routes: Sequence[Route], config: TrainConfig, device: torch.device, precision: str) -> list[Host]:
    """Load runs for inference.

    Args:
        routes: the runs.
        config: the router's configuration, whose trainer says how they compute.
        device: where they go.
        precision: fp32, bf16 or fp16.

    Raises:
        UserError: weights or an adapter that cannot be had.
    """
    groups: dict[str, list[Route]] = {}
    for route in routes:
        groups.setdefault(one_pass(route) or f"\0{route.name}", []).append(route)
    hosts, known, waiting = [], dict[tuple[str, tuple[int, ...], torch.dtype], Tensor](), [*groups.values()]
    while waiting:
        group = waiting.pop(0)
        first = group[0]
        own = replace(first.config, task=_serving(group), trainer=config.trainer)
        setup = load_setup(own, first.folder, device, precision, shared=False)
        if not setup.task.generates:  # other passes than those that write have no row for each sample: texts of classes
            waiting[:0] = [[route] for route in group[1:]]
            group = [first]
        adapters = {first.name: "default"}
        for number, route in enumerate(group[1:], start=1):
            adapters[route.name] = f"route{number}"
            try:
                setup.model.load_adapter(str(RunFolder(route.folder).adapter), adapters[route.name])  # type: ignore[operator]
            except (RuntimeError, ValueError, KeyError, OSError) as error:
                raise UserError(f"adapter.sources: {route.folder}: {' '.join(str(error).split())[:400]}") from error
        setup.model.requires_grad_(False).eval()
        if precision != "fp32":
            lower_for_good(setup.model, DTYPES[precision])
        if not config.model.quantize:
            hold_once(setup, known)
        hosts.append(Host(setup, setup.task, adapters))
    return hosts


def hold_once(setup: TrainingSetup, known: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor]) -> None:
    """Let a model's weights be those of models before it, where name and content are the same.

    Args:
        setup: the model.
        known: the weights of the models before it; its own others are added.
    """
    for name, parameter in setup.backbone.model.named_parameters():
        other = known.setdefault((name, tuple(parameter.shape), parameter.dtype), parameter.data)
        if other is not parameter.data and other.device == parameter.device and torch.equal(other, parameter.data):
            parameter.data = other


def _serving(group: Sequence[Route]) -> TaskConfig:
    """The task of runs that differ in the lengths of their texts at most: the longest."""
    tasks = [route.config.task for route in group]

    def longest(lengths: Sequence[int | str]) -> int | str:
        return "auto" if "auto" in lengths else max(length for length in lengths if isinstance(length, int))

    decode = replace(tasks[0].decode, max_new_tokens=longest([task.decode.max_new_tokens for task in tasks]))
    return replace(tasks[0], max_length=longest([task.max_length for task in tasks]), decode=decode)
