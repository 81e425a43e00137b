"""What the description of a backbone says before anything is loaded. No torch here.

A backbone's layers are counted from its transformers settings: the checkpoint's `config.json` where it is a folder, else those in
the description (`model.config`), so that patterns can be checked and a backbone inspected with neither weights nor network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlatrain.config import ModelConfig, UserError
from vlatrain.injection.points import Sites, Stack, select

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED = "assets:"


def checkpoint_of(config: ModelConfig, task: str) -> str:
    """Folder or hub name of the weights for a task.

    Raises:
        UserError: the backbone does not serve the task.
    """
    if task not in config.tasks:
        raise UserError(f"model={config.name} does not serve task={task}; it serves {', '.join(config.tasks)}")
    name = config.checkpoint or config.tasks[task].checkpoint
    return str(ASSETS / name.removeprefix(SHIPPED)) if name.startswith(SHIPPED) else name


def settings_of(config: ModelConfig, task: str) -> dict[str, Any]:
    """The transformers settings: of the checkpoint where it is a folder, else those in the description.

    Raises:
        UserError: the folder has no readable `config.json`.
    """
    folder = Path(checkpoint_of(config, task))
    if config.random_init or not folder.is_dir():
        return config.config
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model.checkpoint={folder}: no readable config.json ({error})") from error


def stacks(config: ModelConfig, task: str) -> dict[str, Stack]:
    """The towers that serve a task as patterns see them, in the order data flows.

    Raises:
        UserError: the task is not served, or the settings lack a tower's depth.
    """
    settings = settings_of(config, task)
    return {
        name: Stack(_depth(settings, config, name), tuple(config.towers[name].sites))
        for name in config.tasks[task].towers
    }


def sites(config: ModelConfig, task: str, patterns: Iterable[str]) -> Sites:
    """The points that patterns select in a backbone, with their modules.

    Raises:
        UserError: the task is not served, or patterns do not parse or select nothing.
    """
    points = select(patterns, stacks(config, task))
    outputs, linears = {}, {}
    for point in points:
        tower = config.towers[point.tower]
        site, layer = tower.sites[point.site], f"{tower.layers}.{point.layer}"
        outputs[point] = f"{layer}.{site.output}"
        linears[point] = [f"{layer}.{linear}" for linear in site.linears]
    return Sites(outputs, linears, config.tasks[task].heads)


def _depth(settings: dict[str, Any], config: ModelConfig, tower: str) -> int:
    key = config.towers[tower].depth
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int):
        raise UserError(f"model={config.name}: its settings lack {key}, the number of layers of the {tower} tower")
    return value
