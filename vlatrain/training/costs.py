"""What a configuration's training step computes, and what of it can be kept: FLOPs and bytes a sample, counted on shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vlatrain.backbones.base import Backbone, Inputs
from vlatrain.backbones.loading import family_of
from vlatrain.backbones.prefix import CachedStates, Enough, PrefixReplay
from vlatrain.backbones.shapes import Shapes
from vlatrain.config import TrainConfig
from vlatrain.config.joint import subtasks
from vlatrain.data import SHAPES_SIZE
from vlatrain.data.augment import augments
from vlatrain.tasks import build
from vlatrain.tasks.base import TYPICAL
from vlatrain.training.prefix_cache.frontier import frontiers, needed


@dataclass(frozen=True)
class Tower:
    """What can be kept of a tower.

    Attributes:
        name: the tower.
        kept: the layers whose outcome can be kept, as `vision.0-7`; empty: none.
        pinned: what pins the frontier there; empty: nothing, the whole tower is frozen.
        bytes: of the states kept for a sample.
    """

    name: str
    kept: str
    pinned: str
    bytes: int


@dataclass(frozen=True)
class Costs:
    """The costs of a training step.

    Attributes:
        towers: those whose states are a function of the sample.
        flops: of a sample, forward and backward.
        kept_flops: those of them that keeping the prefix saves.
        samples: how many samples the configuration names; None: only its files tell.
    """

    towers: list[Tower]
    flops: int
    kept_flops: int
    samples: int | None


class Prefix:
    """The frozen prefix of a backbone on the meta device.

    Args:
        config: the configuration.
        backbone: the backbone on the meta device, adapters in it.
    """

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        self.backbone = backbone
        self.frontiers = frontiers(backbone.model, config.model, config.task.name)
        boundaries = {name: frontier.boundary for name, frontier in self.frontiers.items() if frontier.boundary}
        self.replay = PrefixReplay(boundaries, {})

    def states(self, inputs: Inputs) -> dict[str, CachedStates]:
        """What is kept of inputs, by tower: computed on shapes."""
        wanted = needed(self.frontiers, "question" in inputs)
        if not wanted:
            return {}
        self.backbone.prefix_replay = self.replay
        with torch.no_grad(), suppress(Enough), self.replay.recording(wanted) as found:
            self.backbone.run_frozen_towers(inputs)
        self.replay.in_tuple |= {name: own.in_tuple for name, own in found.items()}
        return dict(found)

    def put_back(self, questions: Iterable[int]) -> None:
        """Let blank inputs with questions of these lengths (0: none) have what is kept of them: frozen towers are not run then."""
        blank = self.backbone.blank
        known = {length: self.states(blank(1, "meta", length)) for length in questions}

        def replayed(batch_size: int, device: torch.device | str, question: int = 0) -> Inputs:
            inputs, states = blank(batch_size, device, question), known[question]
            batch = {name: own.states.new_empty(batch_size, *own.states.shape[1:]) for name, own in states.items()}
            return {**inputs, "prefix": batch} if batch else inputs

        self.backbone.blank = replayed  # type: ignore[method-assign]


def costs(config: TrainConfig, model: nn.Module, batch_size: int) -> Costs:
    """Count the operations of a pass with texts of typical lengths, and find what of them can be kept.

    Args:
        config: the configuration.
        model: the backbone's model on the meta device, adapters in it.
        batch_size: samples of the pass.

    Raises:
        RuntimeError: a method (of PEFT) looks at values.
    """
    backbone = on_shapes(config, model)
    with FlopCounterMode(display=False) as whole, on_meta_device():
        loss = build(config.task, backbone).loss_on_meta(batch_size, "meta")
        if loss.requires_grad:
            loss.backward()
    model.zero_grad(set_to_none=True)
    prefix = Prefix(config, backbone)
    asked = any("question" in prefix.frontiers[name].of for name in needed(prefix.frontiers))
    with FlopCounterMode(display=False) as counter, on_meta_device(gradients=False):
        states = prefix.states(backbone.blank(1, "meta", TYPICAL["questions"] if asked else 0))
    rows = []
    for name, frontier in prefix.frontiers.items():
        kept = frontier.boundary.name if frontier.boundary else ""
        rows.append(Tower(name, kept, frontier.pinned, states[name].states.nbytes if name in states else 0))
    return Costs(rows, whole.get_total_flops() // batch_size, counter.get_total_flops(), samples_named(config))


def on_shapes(config: TrainConfig, model: nn.Module) -> Backbone:
    """The backbone of a model on the meta device."""
    return family_of(config.model)(config.model, config.task.name, model, None, "")  # type: ignore[arg-type]


@contextmanager
def on_meta_device(gradients: bool = True, fused: bool = False) -> Iterator[None]:
    """Run what follows on shapes, with or without gradients; for `fused` see `Shapes`."""
    with torch.device("meta"), Shapes(fused), torch.set_grad_enabled(gradients):
        yield


def samples_named(config: TrainConfig) -> int | None:
    """Samples of training and evaluation, as far as the configuration tells."""
    total = 0
    for subtask in subtasks(config).values():
        data = subtask.data
        default = SHAPES_SIZE if data.name == "shapes" else {}
        sizes = (data.train_size or default.get("train"), data.eval_size or default.get("eval"))
        if None in sizes:
            return None
        train, rest = sizes[0] or 0, sizes[1] or 0
        total += train * (data.views or 1 if augments(data) else 1) + rest
    return total


def cost_table(costs: Costs) -> Table:
    """As it is shown."""
    table = Table(
        *("tower", "can be kept", "a sample", "begins to train, or keeps it from being kept"),
        title="The frozen prefix",
        title_justify="left",
    )
    for tower in costs.towers:
        size = f"{tower.bytes / 1e6:.2f} MB" if tower.bytes else "-"
        what = tower.kept or "nothing"
        if tower.kept and not tower.bytes:
            what += " (and need not: what reads it is kept)"
        table.add_row(tower.name, what, size, tower.pinned or "nothing: it is frozen as a whole")
    each = sum(tower.bytes for tower in costs.towers)
    if each and costs.samples:
        table.add_row(
            "all", "", f"{each / 1e6:.2f} MB", f"{each * costs.samples / 1e9:.2f} GB for {costs.samples:,} samples"
        )
    without, rest = costs.flops / 1e9, (costs.flops - costs.kept_flops) / 1e9
    table.add_row(
        "FLOPs",
        "",
        f"{without:.1f} G",
        f"{rest:.1f} G with the prefix kept ({without / rest:.1f}x less)" if rest else "",
    )
    return table
