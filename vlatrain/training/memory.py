"""How much memory a training takes at its peak: predicted from shapes, with neither weights nor a device.

What is resident (weights, the optimizer's moments, states kept in memory) is counted. The largest pass of training and of an
evaluation is run on shapes, and the tensors alive at its peak are counted. Two things that shapes do not tell are factors, with
what they were measured at: how much smaller a pass is under autocast, and how much of a CPU process's heap lies idle. The holes
between its tensors, of less than 32 MB, come to about a fifth of these and what attention's weights would take, which no kernel
keeps: so on a CPU they are counted, where it is for these holes (scripts/compare_memory.py has the figures).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from vlatrain.backbones.base import Backbone
from vlatrain.backbones.quantise import BYTES, layers_of, linears
from vlatrain.config import TrainConfig
from vlatrain.config.methods import components, is_peft
from vlatrain.data.lazy import of_subtask
from vlatrain.data.sample import Sample
from vlatrain.tasks import Task, build, subtasks_of
from vlatrain.tasks.base import TYPICAL
from vlatrain.tasks.lengths import longest_texts
from vlatrain.training.costs import Prefix, on_meta_device, on_shapes
from vlatrain.training.modes import checkpoint_gradients
from vlatrain.training.processes import count
from vlatrain.training.shapes import Alive
from vlatrain.training.sharding import sharded

ADAM_STATES = 2  # moments of each trainable parameter, fp32
AUTOCAST = 0.65  # a pass in bf16, of one in fp32: 0.52 to 0.69 (BLIP, CLIP), as norms, softmax and losses stay fp32
HEAP = 1.2  # on a CPU, the heap at its largest, of the tensors of a pass that are alive at once
AT_ONCE = 3  # with `trainer.shard`: the layer that is computed, what it is gathered into, and the room for one of another process
RUNTIME = 600e6  # bytes of a process on a CPU with all that it imports


@dataclass(frozen=True)
class Passes:
    """Bytes of the tensors, besides the weights, that are alive at the peaks of the largest passes in fp32.

    Attributes:
        training: activations and gradients of a pass of a step.
        evaluation: of an evaluation, or of computing the states that are kept.
        kept: of the states that are kept of a sample.
    """

    training: int
    evaluation: int
    kept: int


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training, by kind.

    Attributes:
        weights: the model's, adapters among them.
        optimizer: the moments of what trains.
        kept: states of the frozen prefix that are kept in memory.
        training: activations and gradients of the largest pass of a step.
        evaluation: the same of an evaluation.
        runtime: of the process on a CPU; 0 on a GPU.
        passes: the tensors of the passes; None where a method of PEFT looks at values: then what is counted is the most that they
            can come to.
    """

    weights: int
    optimizer: int
    kept: int
    training: int
    evaluation: int
    runtime: int
    passes: Passes | None

    @property
    def peak(self) -> int:
        """Everything that is there at once."""
        largest = max(self.training, self.evaluation)
        return self.runtime + self.weights + self.optimizer + self.kept + largest


def on_meta(backbone: Backbone, model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A loaded model, and the same as the method returns it, on the meta device: copies without weights.

    Args:
        backbone: the backbone, adapters in it.
        model: its model as the method returns it.
    """
    known: dict[int, Any] = {}
    for parameter in model.parameters():
        known[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    known |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    adapted = copy.deepcopy(model, known)  # the copies know each other, as the originals do
    return known[id(backbone.model)], adapted


def lengths_of(task: Task, samples: Sequence[Sample], size: int) -> dict[str, dict[str, int]]:
    """By subtask, how long the texts of the largest batch are: see `longest_texts`."""
    subtasks = subtasks_of(task)
    return {name: longest_texts(own, of_subtask(samples, name), size) for name, own in subtasks.items()}


def largest_passes(
    config: TrainConfig,
    model: nn.Module,
    batch_size: int,
    lengths: Mapping[str, Mapping[str, int]] | None = None,
    fused: bool = True,
) -> Passes:
    """Run a pass of training, and one of evaluation, on shapes. With `trainer.cache=memory` or `disk` from kept states.

    Args:
        config: the configuration.
        model: the backbone's model on the meta device, adapters in it.
        batch_size: samples of a pass.
        lengths: by subtask (`""` where there are none) the lengths of its texts, see `Task.lengths`; None: typical ones.
        fused: whether attention keeps none of its weights, see `Shapes`.

    Raises:
        RuntimeError: a method (of PEFT) looks at values.
    """
    backbone = on_shapes(config, model)
    task = build(config.task, backbone)
    for name, own in subtasks_of(task).items():
        own.lengths = {**TYPICAL, **(lengths or {}).get(name, {})}
    kept = building = 0
    if config.trainer.cache in ("memory", "disk"):
        prefix = Prefix(config, backbone)
        asked = [own.lengths["questions"] for own in subtasks_of(task).values() if "question" in own.config.spec.fields]
        told = [
            own.lengths["conversations"]
            for own in subtasks_of(task).values()
            if "conversations" in own.config.spec.fields
        ]
        with Alive() as alive, on_meta_device(gradients=False, fused=fused):
            states = prefix.states(backbone.blank(batch_size, "meta", max(asked, default=0)))
        building = alive.peak
        kept = sum(own.states.nbytes for own in states.values()) // batch_size
        del states
        with on_meta_device(gradients=False):
            prefix.put_back({0, *asked, *told})
    if config.trainer.gradient_checkpointing:
        _recompute(model, layers_of(model, config.model, config.task.name), fused)
    with Alive() as alive, on_meta_device(fused=fused):
        loss = task.loss_on_meta(batch_size, "meta")
        if loss.requires_grad:
            loss.backward()
    model.zero_grad(set_to_none=True)
    training = alive.peak
    del loss
    with Alive() as alive, on_meta_device(gradients=False, fused=fused):
        task.evaluate_on_meta(config.trainer.eval_batch_size or 2 * batch_size, "meta")
    return Passes(training, max(building, alive.peak), kept)


def _recompute(model: nn.Module, layers: Sequence[nn.Module], fused: bool) -> None:
    """Let layers be computed again in the backward pass, on shapes there too: a backward pass leaves the modes of its caller."""

    def on_shapes_too(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with on_meta_device(torch.is_grad_enabled(), fused):
                return forward(*args, **kwargs)

        return run

    for layer in layers:
        if not hasattr(layer.forward, "recomputes"):
            layer.forward = on_shapes_too(layer.forward)
    checkpoint_gradients(model, layers)


def predicted(
    config: TrainConfig,
    model: nn.Module,
    adapted: nn.Module,
    batch_size: int,
    lengths: Mapping[str, Mapping[str, int]] | None = None,
    *,
    gpu: bool = False,
    low: bool = False,
    samples: int = 0,
) -> Memory:
    """Predict the peak of a training.

    Args:
        config: the configuration.
        model: the backbone's model on the meta device, adapters in it.
        adapted: the same as the method returns it.
        batch_size: samples of a pass.
        lengths: by subtask (`""` where there are none) the lengths of texts, see `Task.lengths`; None: typical ones.
        gpu: whether it is to run on a GPU.
        low: whether in a type of 16 bits.
        samples: that a prefix kept in memory is kept of.

    Raises:
        RuntimeError: something of ours looks at values.
    """
    total = sum(parameter.numel() for parameter in adapted.parameters())
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    each = 2 if low else 4
    bits = config.model.quantize
    layers = layers_of(model, config.model, config.task.name)
    packed = sum(child.weight.numel() for *_, child in linears(layers))  # type: ignore
    if config.trainer.shard and count() > 1:
        cut = [sum(one.numel() for one in own) for _, own in sharded(adapted, layers)]
        total += AT_ONCE * max(cut, default=0) - sum(cut) * (count() - 1) // count()
    weights = each * (total - trained) + 4 * trained + (int((BYTES[bits] - each) * packed) if bits else 0)
    factor = (AUTOCAST if low else 1.0) * (1.0 if gpu else HEAP)
    try:
        passes, known = largest_passes(config, model, batch_size, lengths, gpu), True
    except RuntimeError:
        if not any(map(is_peft, components(config.adapter).values())):
            raise
        with _everywhere(model):
            passes, known = largest_passes(config, model, batch_size, lengths, gpu), False
    return Memory(
        weights=weights,
        optimizer=4 * ADAM_STATES * trained,
        kept=passes.kept * samples if config.trainer.cache == "memory" else 0,
        training=int(factor * passes.training),
        evaluation=int(factor * passes.evaluation),
        runtime=0 if gpu else int(RUNTIME),
        passes=passes if known else None,
    )


@contextmanager
def _everywhere(model: nn.Module) -> Iterator[None]:
    """Let the model be without what PEFT has put into it, and its vectors train: activations are then kept from the first layer
    on, which is the most that a method comes to that looks at values, and so cannot be run on shapes."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        for layer in layers:
            layer._disable_adapters = True
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
