"""AdamW over named parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlatrain.config import OptimConfig, TrainConfig, UserError
from vlatrain.config.optim import Group


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: OptimConfig, group_of: Callable[[str], Group]
) -> torch.optim.AdamW:
    """AdamW with a parameter group for each group of `group_of`, and within it one without decay for biases, norms and
    other vectors. Each has its peak learning rate as `peak` and its `name`.

    Raises:
        UserError: `optim.groups` names a group that has no trained parameter.
    """
    split: dict[tuple[Group, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        split.setdefault((group_of(name), parameter.dim() >= 2), []).append(parameter)
    present = sorted({group for group, _ in split})
    if unused := sorted(set(config.groups) - set(present)):
        raise UserError(
            f"optim.groups.{group}: nothing of this group is trained; the groups here are {', '.join(present)}"
            for group in unused
        )
    groups = [
        {
            "params": split[group, decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": config.groups.get(group, config.lr),
            "peak": config.groups.get(group, config.lr),
            "name": group,
        }
        for group, decays in sorted(split)
    ]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def with_new_head(config: TrainConfig, parameters: Iterable[str], group_of: Callable[[str], Group]) -> OptimConfig:
    """The optimiser's settings, where a new head has the rate that suits what is new, unless one is set: in a full fine-tuning, and
    of a task beside whose head all else learns slower (`task.rate`).

    Args:
        config: the configuration.
        parameters: names of what trains.
        group_of: the group of a parameter.
    """
    optim = config.optim
    slower = config.adapter.name == "full" or config.task.rate != 1
    if not slower or "head" not in map(group_of, parameters):
        return optim
    return replace(optim, groups={"head": config.model.adapter_lr, **optim.groups})


def rate(step: int, total: int, config: OptimConfig) -> float:
    """Learning rate of a step (from 0) of `total`, as a share of the peak: linear warm-up, then the schedule's descent.

    The first step already learns, and the last one before a descent to 0 still does.
    """
    warmup = round(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    left = 1 - (step - warmup) / max(1, total - warmup)
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def set_rates(optimizer: Any, share: float) -> dict[str, float]:
    """Set the learning rates to a share of their peaks.

    Returns:
        the rate of each group by name.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def optimizer_tensors(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state by `<parameter>/<moment>`."""
    return {
        f"{name}/{key}": tensor.detach()
        for name, parameter in parameters.items()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: Any, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Set the optimizer's state to what `optimizer_tensors` returned."""
    for key, tensor in tensors.items():
        name, moment = key.rsplit("/", 1)
        optimizer.state[parameters[name]][moment] = tensor.to(parameters[name].device, copy=True)
