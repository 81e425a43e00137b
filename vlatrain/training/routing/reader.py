"""What a router goes by: states of the frozen backbone before any adapter, and the words that a sample is asked about with.

A backbone without adapters reads an image up to a layer, once. These states make the features, mean and standard deviation over the
patches, and are then handed to the runs whose adapters start behind that layer: they go on from there. A run whose adapters start
before it reads the image a second time. Words are read as the mean of their embeddings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlatrain.adapters.router import pooled
from vlatrain.backbones.base import Backbone, Inputs
from vlatrain.backbones.prefix import Boundary, Enough, PrefixReplay
from vlatrain.config import ModelConfig, UserError
from vlatrain.data.sample import Sample
from vlatrain.tasks.base import move
from vlatrain.training.batches import batches_by, chunks
from vlatrain.training.display import Display
from vlatrain.training.modes import hash_of
from vlatrain.training.prefix_cache.build import loaded
from vlatrain.training.prefix_cache.compute import content, weights_before
from vlatrain.training.prefix_cache.frontier import Frontier, frontiers


@dataclass(frozen=True)
class States:
    """What a tower has made of the images of a batch, as a backbone's tasks read what is kept (`Backbone.cache`).

    Attributes:
        tower: the tower.
        values: (N, taps, L, width), those of a sample's images one after the other.
        in_tuple: whether its layers return tuples.
        rows: by picture, its row.
        counts: how many images each sample has.
    """

    tower: str
    values: Tensor
    in_tuple: bool
    rows: Mapping[int, int]
    counts: Sequence[int]

    @property
    def seen(self) -> Tensor:
        """Mean and spread over the patches (B, 2 * width), of several images their mean, on the CPU."""
        found = pooled(self.values[:, -1]).cpu()  # (N, taps, L, width) -> (N, L, width) -> (N, 2 * width)
        if max(self.counts) == 1:
            return found
        return torch.stack([own.mean(dim=0) for own in found.split(list(self.counts))])

    def read(self, samples: Sequence[Sample], asked: bool, length: int | None = None) -> dict[str, Tensor]:
        """The states (N, taps, L, width) of samples' images; nothing, if those of one are not there."""
        places = [self.rows.get(id(one), -1) for sample in samples for one in sample.pictures]
        if min(places) < 0:
            return {}
        whole = places == [*range(len(self.values))]
        return {self.tower: self.values if whole else self.values[torch.tensor(places, device=self.values.device)]}


class Reader:
    """Reads samples with the frozen backbone.

    Args:
        backbone: the backbone, with nothing in it.
        tower: the tower that reads images.
        layers: so many of its lowest layers read them.
        precision: fp32, bf16 or fp16.

    Attributes:
        depth: layers of the tower.
    """

    def __init__(self, backbone: Backbone, tower: str, layers: int, precision: str) -> None:
        self.backbone, self.tower, self.layers, self.precision = backbone, tower, layers, precision
        self.frontier = frontier_at(tower, layers)
        self.words = word_embeddings(backbone)

    def states(self, samples: Sequence[Sample]) -> States:
        """The states of samples' images, computed in one batch."""
        return self._run(move(loaded(self.backbone, 0, samples), self.backbone.device), samples)

    def features(self, seen: Tensor, said: Sequence[str]) -> Tensor:
        """Features (B, width) of samples: what is seen of their images (B, 2 * width of the tower), and what is said with each."""
        return torch.cat([seen, self.said(said)], dim=1) if self.words is not None else seen

    def _run(self, inputs: Inputs, samples: Sequence[Sample]) -> States:
        boundary = self.frontier.boundary
        assert boundary is not None
        self.backbone.prefix_replay = PrefixReplay({self.tower: boundary}, {})
        with self.backbone.prefix_replay.recording([self.tower]) as recorded, suppress(Enough):
            self.backbone.run_frozen_towers(inputs)
        self.backbone.prefix_replay = None
        found = recorded[self.tower]
        rows = {id(one): row for row, one in enumerate(one for sample in samples for one in sample.pictures)}
        return States(self.tower, found.states, found.in_tuple, rows, [len(sample.pictures) for sample in samples])

    def said(self, texts: Sequence[str]) -> Tensor:
        """Of each text whether there is one, and the mean of its words' embeddings: (B, 1 + width)."""
        assert self.words is not None
        ids = self.backbone.tokens(texts)
        counts = torch.tensor([[len(own)] for own in ids])  # (B, 1)
        flat = torch.tensor(
            [number for own in ids for number in own], dtype=torch.long, device=self.words.weight.device
        )
        rows = self.words.weight[flat].float().cpu()  # (all words, width)
        owner = torch.repeat_interleave(torch.arange(len(ids)), counts[:, 0])
        sums = torch.zeros(len(ids), rows.shape[1]).index_add(0, owner, rows)
        return torch.cat([(counts > 0).float(), sums / counts.clamp(min=1)], dim=1)

    def seen(self, samples: Sequence[Sample], size: int, display: Display, workers: int = 0) -> Tensor:
        """What is seen of any number of samples, (N, 2 * width of the tower); no more states than those of a batch are held."""
        found = []
        keys = chunks(len(samples), size)
        batches = batches_by(keys, samples, partial(loaded, self.backbone, 0), workers, self.backbone.device)
        with display.track("reading", len(samples)) as track, closing(batches):
            for key, inputs in zip(keys, batches, strict=True):
                found.append(self._run(inputs, [samples[place] for place in key]).seen)
                track.advance(len(key))
        return torch.cat(found)

    def lend(self, backbone: Backbone) -> bool:
        """Whether a run's backbone can go on from what is read here: nothing of its own lies before, and it is the same."""
        own = frontiers(backbone.model, backbone.config, backbone.task).get(self.tower)
        if own is None or own.boundary is None or len(own.boundary.taps) > 1 or own.boundary.layers < self.layers:
            return False
        at = {self.tower: self.frontier}
        hashes = [content(one, at, self.tower, self.precision) for one in (self.backbone, backbone)]
        return hashes[0] == hashes[1]

    def hand_on(self, backbone: Backbone, states: States | None) -> None:
        """Let a backbone that `lend` has found fit go on from states; None: from images again."""
        backbone.cache, backbone.prefix_replay = states, None
        if states is not None and self.frontier.boundary is not None:
            backbone.prefix_replay = PrefixReplay({self.tower: self.frontier.boundary}, {self.tower: states.in_tuple})

    @property
    def hash(self) -> str:
        """A hash of the weights that it reads with."""
        digest = hashlib.sha256()
        for name, tensor in sorted(weights_before(self.backbone, {self.tower: self.frontier}, self.tower)):
            digest.update(f"{name} {tuple(tensor.shape)} {hash_of(tensor)}".encode())
        return digest.hexdigest()[:32]


def frontier_at(tower: str, layers: int) -> Frontier:
    """A tower's frontier behind so many layers."""
    return Frontier(Boundary(tower, layers, (layers - 1,)), "", ("image",))


def image_tower(model: nn.Module, config: ModelConfig, task: str) -> tuple[str, int]:
    """The last tower whose states are a function of the image alone, and the number of its layers.

    Raises:
        UserError: the backbone has none.
    """
    found = [
        (name, own.boundary.layers)
        for name, own in frontiers(model, config, task).items()
        if own.boundary is not None and own.of == ("image",)
    ]
    if not found:
        raise UserError(
            f"adapter=router: model={config.name} has no tower whose states are a function of the image alone, by which to choose"
        )
    return found[-1]


def shared_layers(backbones: Sequence[Backbone], tower: str) -> int:
    """So many layers of a tower lie before the first adapted point of all backbones."""

    def own(backbone: Backbone) -> int:
        found = frontiers(backbone.model, backbone.config, backbone.task).get(tower)
        return found.boundary.layers if found and found.boundary and len(found.boundary.taps) == 1 else 0

    return min(map(own, backbones))


def word_embeddings(backbone: Backbone) -> nn.Embedding | None:
    """The embeddings of a backbone's words; None if it reads no texts."""
    if backbone.tokenizer is None:
        return None
    known: list[Any] = [module for module in backbone.model.modules() if isinstance(module, nn.Embedding)]
    known = [module for module in known if module.num_embeddings >= backbone.tokenizer.vocab_size]
    return max(known, key=lambda module: module.num_embeddings, default=None)
