"""Configuration of the loggers beyond `metrics.jsonl`, which is always written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vlatrain.config.limits import Choice


@dataclass
class LoggerConfig:
    """Where else metrics go.

    Attributes:
        name: none, wandb or tensorboard.
        project: wandb: project name.
        mode: wandb: online, offline or disabled.
    """

    name: Annotated[str, Choice("none", "wandb", "tensorboard")] = "none"
    project: str = "vlatrain"
    mode: Annotated[str, Choice("online", "offline", "disabled")] = "online"
