"""Configuration of the loggers beyond `metrics.jsonl`, which is always written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LoggerConfig:
    """Where else metrics go.

    Attributes:
        name: none, wandb or tensorboard.
        project: wandb: project name.
        mode: wandb: online, offline or disabled.
    """

    name: str = "none"
    project: str = "vlatrain"
    mode: str = "online"
