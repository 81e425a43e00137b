"""`vlatrain inspect`: what a configuration would train, counted on the meta device, with neither weights nor network."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from vlatrain.backbones.describe import checkpoint_of, sites, stacks
from vlatrain.config import TrainConfig, UserError
from vlatrain.config.methods import BARE, ROUTER, is_peft
from vlatrain.config.methods import components as methods
from vlatrain.injection.attach import attach, group_of
from vlatrain.injection.points import PROJECTION, Sites, everything
from vlatrain.reporting.console import RichConsole as Console
from vlatrain.reporting.console import print_sentence
from vlatrain.tasks import build
from vlatrain.tasks.base import TYPICAL
from vlatrain.training.costs import cost_table, costs, on_shapes, samples_named
from vlatrain.training.fitting import largest, room_on, without_room
from vlatrain.training.memory import Memory, predicted
from vlatrain.training.precision import choose_device
from vlatrain.training.sizes import refuse_unfit, without_weights


@dataclass(frozen=True)
class Inspection:
    """The counts of a configuration.

    Attributes:
        trainable: trainable parameters by group.
        total: all parameters, adapters included, shared ones once.
        adapter_bytes: size of the saved adapter's tensors (fp32).
        batch_size: samples of a pass.
        memory: the predicted peak of training.
    """

    trainable: dict[str, int]
    total: int
    adapter_bytes: int
    batch_size: int
    memory: Memory

    @property
    def percent(self) -> float:
        """Share of trainable parameters, in percent."""
        return 100 * sum(self.trainable.values()) / self.total


def count(config: TrainConfig) -> Inspection:
    """Build the model with its adapters on the meta device and count.

    Raises:
        UserError: the backbone does not serve the task, or patterns select nothing.
    """
    return _counted(config, *without_values(config))


def _counted(config: TrainConfig, model: nn.Module, adapted: nn.Module) -> Inspection:
    trainable = Counter[str]()
    saved = 0  # a fusion's frozen sources too
    for key, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            trainable[group_of(key)] += parameter.numel()
        if parameter.requires_grad or group_of(key) == "adapter":
            saved += parameter.numel()
    asked = config.trainer.device
    device = torch.device(asked) if asked in ("cuda", "mps") else choose_device(asked)
    gpu = device.type != "cpu"
    low = config.trainer.precision in ("bf16", "fp16") or (gpu and config.trainer.precision == "auto")
    here = device.type == choose_device("auto").type or not gpu
    room = room_on(device) if here else math.inf  # of a GPU elsewhere it is not known

    def memory_of(size: int) -> Memory:
        return predicted(config, model, adapted, size, gpu=gpu, low=low, samples=samples_named(config) or 0)

    size = (
        sizes[0]
        if (sizes := without_room(config, build(config.task, on_shapes(config, model)), device))
        else largest(config.served.samples_per_step, lambda size: memory_of(size).peak, room)[0]
    )
    memory = memory_of(size)
    total = sum(parameter.numel() for parameter in adapted.parameters())
    return Inspection(dict(trainable), total, 4 * saved, size, memory)


def without_values(config: TrainConfig) -> tuple[nn.Module, nn.Module]:
    """The model, and the same with its adapters, on the meta device."""
    name = config.task.name
    where = sites(config.model, name, config.points)
    for device in ("meta", "cpu"):  # BOFT looks at values while it is made
        model = without_weights(config)
        try:
            with torch.device(device):
                adapted = attach(model, config.adapter, where, [*config.task.subtasks])
            break
        except RuntimeError:
            if device == "cpu" or not any(map(is_peft, methods(config.adapter).values())):
                raise
    return model, adapted.to("meta")


def inspect(config: TrainConfig, console: Console | None = None) -> Inspection:
    """Print towers and points, what is selected, and the counts.

    Raises:
        UserError: a router, which puts nothing into the backbone.
    """
    if config.adapter.name == ROUTER:
        raise UserError(
            "vlatrain inspect: adapter=router puts nothing into the backbone; inspect its runs as they were trained"
        )
    console = console or Console()
    refuse_unfit(config)
    model, adapted = without_values(config)
    found = _counted(config, model, adapted)
    where = sites(config.model, config.task.name, config.points)
    names = (config.model.name, config.task.name, config.adapter.name)
    print_sentence("{} for {}, adapter={}".format(*names), console, marked=dict.fromkeys(names, "bold"))
    architecture = config.model.tasks[config.task.name].architecture
    print_sentence(f"{architecture}, {checkpoint_of(config.model, config.task.name)}", console)
    console.print(_towers(config, where))
    console.print(_counts(config, found))
    if found.memory.passes:
        console.print(cost_table(costs(config, model, found.batch_size)))
    lengths = ", ".join(f"{name} {tokens}" for name, tokens in TYPICAL.items() if name != "texts")
    print_sentence(
        f"Memory is for one process, {found.batch_size} samples a pass, with texts of {lengths} tokens, one learned a sample; "
        "measured as metrics.json's peak_mb.",
        console,
        "dim",
    )
    return found


def as_json(inspection: Inspection) -> dict[str, Any]:
    """The counts as JSON values."""
    return {**asdict(inspection), "percent": inspection.percent}


def _towers(config: TrainConfig, where: Sites) -> Table:
    table = Table(
        "tower",
        "layers",
        "sites (width)",
        "selected points",
        title="Injection points: tower.layer.site",
        title_justify="left",
    )
    everywhere = sites(config.model, config.task.name, ["*"]).places
    towers = stacks(config.model, config.task.name)
    shown = config.adapter.name not in BARE or (config.adapter.name == "full" and config.adapter.points is not None)
    for tower, stack in towers.items():
        first = [point for point in everything(towers) if point.tower == tower and point.layer == 0]
        described = ", ".join(f"{point.site} ({everywhere[point].width})" for point in first)
        selected = []
        for site in stack.sites:
            layers = [point.layer for point in where.places if point.tower == tower and point.site == site]
            if layers and shown:
                selected.append(f"{site}: {_ranges(layers)}")
        if stack.projection:
            described += f"; {PROJECTION}"
            selected += [PROJECTION for point in where.places if (point.tower, point.site) == (tower, PROJECTION)]
        table.add_row(tower, f"0-{stack.layers - 1}", described, "\n".join(selected) or "-")
    return table


def _counts(config: TrainConfig, inspection: Inspection) -> Table:
    table = Table("what", "how much", title="Parameters and memory", title_justify="left")
    for group, number in inspection.trainable.items():
        table.add_row(f"trainable: {group}", f"{number:,}")
    table.add_row(
        "trainable", f"{sum(inspection.trainable.values()):,} ({inspection.percent:.3f} % of {inspection.total:,})"
    )
    table.add_row("adapter file", _bytes(inspection.adapter_bytes))
    memory = inspection.memory
    for kind, size in (("runtime", memory.runtime), ("weights", memory.weights), ("optimizer", memory.optimizer)):
        if size:
            table.add_row(f"memory: {kind}", _bytes(size))
    if memory.kept:
        table.add_row("memory: states kept", _bytes(memory.kept))
    for kind, known in (("of training", memory.training), ("of evaluation", memory.evaluation)):
        kind += "" if memory.passes else ", at most"
        table.add_row(f"memory: a pass {kind}", _bytes(known))
    table.add_row("training memory, estimated", _bytes(memory.peak))
    return table


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
