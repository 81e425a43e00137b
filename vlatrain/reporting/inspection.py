"""`vlatrain inspect`: what a configuration would train, counted on the meta device, with neither weights nor network."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from vlatrain.backbones.describe import checkpoint_of, sites, stacks
from vlatrain.backbones.loading import family_of, meta_model
from vlatrain.backbones.quantise import BYTES, layers_of, linears
from vlatrain.config import TrainConfig
from vlatrain.config.methods import is_peft
from vlatrain.config.methods import parts as methods
from vlatrain.injection.attach import attach, group_of
from vlatrain.injection.points import Sites, everything
from vlatrain.reporting.costs import cost_table, costs
from vlatrain.reporting.shapes import Shapes
from vlatrain.tasks import build, prepare
from vlatrain.tasks.base import TYPICAL

ADAM_STATES = 2  # moments of each trainable parameter, fp32, beside its gradient


@dataclass(frozen=True)
class Inspection:
    """The counts of a configuration.

    Attributes:
        trainable: trainable parameters by group.
        total: all parameters, adapters included, shared ones once.
        adapter_bytes: size of the saved adapter's tensors (fp32).
        memory: estimated bytes while training, by kind: weights, optimizer (with gradients), activations kept for the backward
            pass of one batch (not there where a method of PEFT looks at values: they are counted on shapes alone).
    """

    trainable: dict[str, int]
    total: int
    adapter_bytes: int
    memory: dict[str, int]

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
    total = sum(parameter.numel() for parameter in adapted.parameters())
    trained = sum(trainable.values())
    low = 2 if config.trainer.precision in ("bf16", "fp16") else 4
    bits = config.model.quantize
    quantised = sum(child.weight.numel() for *_, child in linears(layers_of(model, config.model, config.task.name)))  # type: ignore
    memory = {
        "weights": low * (total - trained) + 4 * trained + (int((BYTES[bits] - low) * quantised) if bits else 0),
        "gradients and optimizer": 4 * (1 + ADAM_STATES) * trained,
    }
    try:
        memory["activations"] = _activations(config, model) * low // 4
    except RuntimeError:
        if not any(map(is_peft, methods(config.adapter).values())):
            raise
    return Inspection(dict(trainable), total, 4 * saved, memory)


def without_values(config: TrainConfig) -> tuple[nn.Module, nn.Module]:
    """The model, and the same with its adapters, on the meta device."""
    name = config.task.name
    where = sites(config.model, name, config.points)
    for device in ("meta", "cpu"):  # BOFT looks at values while it is made
        model = meta_model(config.model, name).requires_grad_(False)
        if config.task.answer_list:  # a classifier has a row for each
            prepare(config.task, family_of(config.model)(config.model, name, model, None, ""))
        try:
            with torch.device(device):
                adapted = attach(model, config.adapter, where, [*config.task.parts])
            break
        except RuntimeError:
            if device == "cpu" or not any(map(is_peft, methods(config.adapter).values())):
                raise
    return model, adapted.to("meta")


def inspect(config: TrainConfig, console: Console | None = None) -> Inspection:
    """Print towers and points, what is selected, and the counts."""
    console = console or Console()
    model, adapted = without_values(config)
    found = _counted(config, model, adapted)
    where = sites(config.model, config.task.name, config.points)
    console.print(
        f"[bold]{config.model.name}[/] ({config.model.tasks[config.task.name].architecture}, "
        f"{checkpoint_of(config.model, config.task.name)}) for [bold]{config.task.name}[/], adapter=[bold]{config.adapter.name}[/]"
    )
    console.print(_towers(config, where))
    console.print(_counts(config, found))
    with suppress(RuntimeError):  # a method of PEFT that looks at values
        console.print(cost_table(costs(config, model)))
    lengths = ", ".join(f"{name} {tokens}" for name, tokens in TYPICAL.items())
    console.print(
        f"Memory is for one process, batch {config.trainer.batch_size}, with texts of {lengths} tokens; "
        "the runtime's own comes on top.",
        style="dim",
    )
    return found


def as_json(found: Inspection) -> dict:
    """The counts as JSON values."""
    return {**asdict(found), "percent": found.percent}


def _towers(config: TrainConfig, where: Sites) -> Table:
    table = Table("tower", "layers", "sites (width)", "selected points", title="Injection points: tower.layer.site")
    everywhere = sites(config.model, config.task.name, ["*"]).places
    towers = stacks(config.model, config.task.name)
    for tower, stack in towers.items():
        first = [point for point in everything(towers) if point.tower == tower and point.layer == 0]
        described = ", ".join(f"{point.site} ({everywhere[point].width})" for point in first)
        selected = []
        for site in stack.sites:
            layers = [point.layer for point in where.places if point.tower == tower and point.site == site]
            if layers and config.adapter.name not in ("full", "none"):
                selected.append(f"{site}: {_ranges(layers)}")
        table.add_row(tower, f"0-{stack.layers - 1}", described, "\n".join(selected) or "-")
    return table


def _counts(config: TrainConfig, found: Inspection) -> Table:
    table = Table("what", "how much", title="Parameters and memory")
    for group, number in found.trainable.items():
        table.add_row(f"trainable: {group}", f"{number:,}")
    table.add_row("trainable", f"{sum(found.trainable.values()):,} ({found.percent:.3f} % of {found.total:,})")
    table.add_row("adapter file", _bytes(found.adapter_bytes))
    for kind, size in found.memory.items():
        table.add_row(f"training memory: {kind}", _bytes(size))
    if "activations" not in found.memory:
        table.add_row("training memory: activations", "not known: they depend on values here")
    table.add_row("training memory, estimated", _bytes(sum(found.memory.values())))
    return table


def _activations(config: TrainConfig, model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of one batch in fp32: counted by running the forward on shapes."""
    kept: dict[int, int] = {}
    alive = []  # so that no identity is used again
    weights = {id(parameter) for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        base = tensor._base if tensor._base is not None else tensor
        if id(base) not in weights:
            kept[id(base)] = base.numel() * base.element_size()
            alive.append(base)
        return tensor

    backbone = family_of(config.model)(config.model, config.task.name, model, None, "")  # type: ignore[arg-type]
    task = build(config.task, backbone)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.device("meta"), Shapes():
        task.rehearse(config.trainer.batch_size, "meta")
    return sum(kept.values())


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
