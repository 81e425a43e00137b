"""What a configuration's training step computes, and what of it can be kept: FLOPs and bytes a sample, counted on shapes alone."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vlatrain.backbones.loading import family_of
from vlatrain.backbones.prefix import CachedStates, Enough, PrefixReplay
from vlatrain.config import TrainConfig
from vlatrain.config.joint import subtasks
from vlatrain.data import SHAPES_SIZE
from vlatrain.data.augment import augments
from vlatrain.tasks import build
from vlatrain.tasks.base import TYPICAL
from vlatrain.training.prefix_cache.frontier import frontiers, needed
from vlatrain.training.shapes import Alive, Shapes


@dataclass(frozen=True)
class Step:
    """A training step, forward and backward, of one batch of typical lengths.

    Attributes:
        flops: of a sample.
        bytes: of the tensors alive at its peak, besides the weights: activations and gradients.
    """

    flops: int
    bytes: int


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


def rehearsed(config: TrainConfig, model: nn.Module) -> Step:
    """Run a step of `trainer.batch_size` on shapes.

    Args:
        config: the configuration.
        model: the backbone's model on the meta device, adapters in it.

    Raises:
        RuntimeError: a method (of PEFT) looks at values.
    """
    backbone = family_of(config.model)(config.model, config.task.name, model, None, "")  # type: ignore[arg-type]
    size = config.trainer.batch_size
    task = build(config.task, backbone)
    with FlopCounterMode(display=False) as counter, Alive() as alive, torch.device("meta"), Shapes():
        loss = task.loss_on_meta(size, "meta")
        if loss.requires_grad:
            loss.backward()
    model.zero_grad(set_to_none=True)
    return Step(counter.get_total_flops() // size, alive.peak)


def costs(config: TrainConfig, model: nn.Module, step: Step) -> Costs:
    """Find what of a step can be kept.

    Args:
        config: the configuration.
        model: the backbone's model on the meta device, adapters in it.
        step: the whole step.
    """
    backbone = family_of(config.model)(config.model, config.task.name, model, None, "")  # type: ignore[arg-type]
    found = frontiers(model, config.model, config.task.name)
    boundaries = {name: frontier.boundary for name, frontier in found.items() if frontier.boundary}
    wanted = needed(found)
    replay, saved, states = PrefixReplay(boundaries, {}), 0, dict[str, CachedStates]()
    if wanted:
        backbone.prefix_replay = replay
        asked = TYPICAL["question"] if any("question" in found[name].of for name in wanted) else 0
        with ExitStack() as stack:
            prefix = stack.enter_context(FlopCounterMode(display=False))
            for context in (torch.device("meta"), Shapes(), torch.no_grad(), suppress(Enough)):
                stack.enter_context(context)
            states = stack.enter_context(replay.recording(wanted))
            backbone.run_frozen_towers(backbone.blank(1, "meta", asked))
        saved = prefix.get_total_flops()
    rows = []
    for name, frontier in found.items():
        kept = frontier.boundary.name if frontier.boundary else ""
        taken = states[name].states if name in states else None
        bytes_ = 0 if taken is None else taken[0].numel() * taken.element_size()
        rows.append(Tower(name, kept, frontier.pinned, bytes_))
    return Costs(rows, step.flops, saved, _samples(config))


def _samples(config: TrainConfig) -> int | None:
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
        "tower", "can be kept", "a sample", "begins to train, or keeps it from being kept", title="The frozen prefix"
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
