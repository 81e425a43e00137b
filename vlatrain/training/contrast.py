"""Contrast with as many samples as `task.negatives_per_step` says, whatever a pass holds and however many processes there are.

GradCache: Gao, Zhang, Han, Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (RepL4NLP 2021,
arXiv 2101.06983). Each micro-batch is encoded without a graph; the loss of all features, and its gradients with respect to them,
take little memory; then each micro-batch is encoded again, drawing the same random numbers, and its share of these gradients goes
back through it. Loss and gradients are those of one pass with all samples, but for rounding.

What differs from the paper: the last micro-batch keeps its graph and is encoded once. Of several processes each encodes its own
micro-batches, and computes the loss of the features of all. Where the task also matches pairs with hard negatives, these are drawn
from the micro-batch, as their states are not kept: that loss is the same with and without this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import pad

from vlatrain.config import TrainConfig, UserError
from vlatrain.metrics.retrieval import similarity
from vlatrain.tasks.base import Task, move
from vlatrain.training import rng
from vlatrain.training.processes import gather


class Contrastive(Protocol):
    """A task whose `contrasts` is true."""

    def embed(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Features of a batch's images, (I, D) or (I, V, D), and captions, (T, D), and the images' states for `matching_loss`."""
        ...

    def contrast(self, cosine: Tensor, ids: Tensor, group_index: Tensor) -> Tensor:
        """The loss of similarities (T, I) of captions with these token ids (T, L) and images (T,): the mean over the images."""
        ...

    def matching_loss(self, batch: Any, cosine: Tensor, states: Tensor) -> Tensor | None:
        """What is learned of a batch's pairs beside the contrast; None: nothing."""
        ...


def passes_together(config: TrainConfig, processes: int) -> int:
    """How many micro-batches of each process are contrasted with each other.

    Raises:
        UserError: passes and steps do not come to `task.negatives_per_step`.
    """
    wanted, trainer = config.task.negatives_per_step, config.trainer
    if wanted is None:
        return 1
    at_once = trainer.samples_per_pass * processes
    step = at_once * trainer.passes_per_step
    if wanted % at_once or step % wanted:
        shared = f" x {processes} processes" if processes > 1 else ""
        remedy = "" if wanted % at_once else f": trainer.accumulate={wanted // at_once}"
        raise UserError(
            f"task.negatives_per_step={wanted}: must be a multiple of the {at_once} samples of a pass "
            f"(trainer.batch_size={trainer.samples_per_pass}{shared}), and divide the {step} of a step "
            f"(x trainer.accumulate={trainer.passes_per_step}){remedy}"
        )
    return wanted // at_once


@dataclass(frozen=True)
class _Features:
    """What is contrasted of a micro-batch, without a graph.

    Attributes:
        images: (I, D) or (I, V, D) features.
        texts: (T, D) features.
        ids: (T, L) token ids, -1 for padding; on the CPU.
        group_index: (T,) the texts' images; on the CPU.
        weight: of the micro-batch.
    """

    images: Tensor
    texts: Tensor
    ids: Tensor
    group_index: Tensor
    weight: float

    def to(self, device: torch.device | str) -> _Features:
        """With features on another device."""
        return replace(self, images=self.images.to(device), texts=self.texts.to(device))


@dataclass(frozen=True)
class _Encoded:
    """What a micro-batch's gradients go back through: its features with their graph, and its matching loss if it has one."""

    images: Tensor
    texts: Tensor
    matching: Tensor | None


class Contrast:
    """The gradients of micro-batches that are contrasted with each other.

    Args:
        task: a task that `contrasts`.
        accelerator: the processes, and fp16's loss scaler.
        computing: the context of a forward pass.
        moving: buffers that a forward pass of what trains changes.

    Raises:
        UserError: the task contrasts no features.
    """

    def __init__(
        self,
        task: Task,
        accelerator: Accelerator,
        computing: Callable[[], AbstractContextManager[Any]],
        moving: Mapping[str, Tensor],
    ) -> None:
        if not task.contrasts:
            raise UserError(
                f"task.negatives_per_step: task={task.name} contrasts no features with this model: leave it out"
            )
        self.task, self.accelerator, self.device = cast(Contrastive, task), accelerator, accelerator.device
        self.computing, self.moving = computing, list(moving.values())

    def __call__(self, group: Sequence[tuple[Any, float]]) -> Tensor:
        """Add the gradients of micro-batches on the CPU, each with its weight; their loss, weighted, on the device.

        A micro-batch of weight 0 holds a sample that is another process's (`vlatrain.training.order`): it is left out.
        """
        drawn: dict[int, rng.States] = {}
        features: dict[int, _Features] = {}
        encoded: _Encoded | None = None
        numbers = [number for number, (_, weight) in enumerate(group) if weight]
        for number in numbers:
            batch, weight = group[number]
            drawn[number] = rng.states()
            if number == numbers[-1]:
                encoded = self._encode(batch)
                images, texts = encoded.images, encoded.texts
            else:
                with torch.no_grad(), self._unmoved(), self.computing():
                    images, texts, _ = self.task.embed(move(batch, self.device))
            features[number] = _features(images, texts, batch, weight)
        loss, gradients = self._contrast(features)
        for number in reversed(numbers):
            batch, weight = group[number]
            encoded = encoded or self._encode(batch, drawn[number])
            self._backward(encoded, *gradients[number], weight)
            if encoded.matching is not None:
                loss = loss + encoded.matching.detach().float() * weight
            encoded = None  # its graph makes room for the next one's
        return loss

    def _encode(self, batch: Any, drawn: rng.States | None = None) -> _Encoded:
        """Encode a micro-batch with a graph; the features draw what they drew after these states, where some are given."""
        batch = move(batch, self.device)
        with self.computing():
            with rng.replayed(drawn) if drawn else nullcontext():
                images, texts, states = self.task.embed(batch)
            cosine = similarity(texts.detach(), images.detach())
            return _Encoded(images, texts, self.task.matching_loss(batch, cosine, states))

    def _contrast(self, own: Mapping[int, _Features]) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
        """The weighted loss of the features of all processes, and its gradients with respect to this one's, by micro-batch.

        What trains in the loss itself, a temperature, gets its gradient.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        sent = {number: one.to("cpu") for number, one in own.items()} if processes > 1 else own
        everyone = {
            (number, rank): one.to(self.device)
            for rank, theirs in enumerate(gather(sent))
            for number, one in theirs.items()
        }
        features = [everyone[place] for place in sorted(everyone)]  # as one process has them: a pass, then the next
        images = torch.cat([one.images for one in features]).requires_grad_()
        texts = torch.cat([one.texts for one in features]).requires_grad_()
        ids, group_index = (joined.to(self.device) for joined in _joined(features))
        with self.computing():
            loss = self.task.contrast(similarity(texts, images), ids, group_index)
        weight = sum(one.weight for one in features) / processes
        self.accelerator.backward(loss * weight)
        assert images.grad is not None
        assert texts.grad is not None
        # the mean over the processes is taken of gradients, and only this one has those of its samples
        to_images = (images.grad * processes).split([len(one.images) for one in features])
        to_texts = (texts.grad * processes).split([len(one.texts) for one in features])
        gradients = dict(zip(sorted(everyone), zip(to_images, to_texts, strict=True), strict=True))
        return loss.detach().float() * weight, {number: gradients[number, rank] for number in own}

    def _backward(self, encoded: _Encoded, to_images: Tensor, to_texts: Tensor, weight: float) -> None:
        """Take the gradients with respect to features, which fp16's scale is in, through the towers, with those of matching."""
        roots: list[tuple[Tensor, Tensor | None]] = [(encoded.images, to_images), (encoded.texts, to_texts)]
        if encoded.matching is not None:
            matching = encoded.matching * weight
            scaler = self.accelerator.scaler
            roots.append((matching if scaler is None else scaler.scale(matching), None))
        if trained := [root for root in roots if root[0].requires_grad]:
            tensors, gradients = zip(*trained, strict=True)
            torch.autograd.backward(tensors, gradients)

    @contextmanager
    def _unmoved(self) -> Iterator[None]:
        """Leave the moving statistics as they are: each micro-batch moves them once, with its graph."""
        before = [buffer.clone() for buffer in self.moving]
        yield
        for buffer, value in zip(self.moving, before, strict=True):
            buffer.copy_(value)


def _features(images: Tensor, texts: Tensor, batch: Any, weight: float) -> _Features:
    ids = batch["text"].ids.masked_fill(batch["text"].mask == 0, -1)
    return _Features(images.detach(), texts.detach(), ids, batch["group_index"], weight)


def _joined(features: Sequence[_Features]) -> tuple[Tensor, Tensor]:
    """Of the captions of several micro-batches (T,): numbers (T, 1), the same for the same captions, and their images (T,)."""
    length = max(one.ids.shape[1] for one in features)
    ids = torch.cat([pad(one.ids, (0, length - one.ids.shape[1]), value=-1) for one in features])
    before, group_index = 0, []
    for one in features:
        group_index.append(one.group_index + before)
        before += len(one.images)
    return ids.unique(dim=0, return_inverse=True)[1][:, None], torch.cat(group_index)
