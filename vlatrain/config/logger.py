"""Configuration of the trackers beyond `metrics.jsonl`, which is always written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from vlatrain.config.limits import NOT_NEGATIVE, Choice

#: The trackers of `accelerate.tracking`, each named as the package that it needs.
TRACKERS = ("wandb", "tensorboard", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio")
EXTRAS = ("wandb", "tensorboard")  # of these, the ones that are tested, and that vlatrain has an extra for


@dataclass
class LoggerConfig:
    """Where else metrics go.

    Attributes:
        name: none, wandb, tensorboard, mlflow, comet_ml, aim, clearml, dvclive, swanlab or trackio.
        also: more of them at once: wandb, tensorboard, mlflow, comet_ml, aim, clearml, dvclive, swanlab, trackio.
        project: name of the project, or of what else a tracker files its runs under.
        entity: wandb: the user or team that the project is of; null: the one that is logged in.
        group: wandb: what the run is shown with; null: of a sweep's job the name of the sweep's folder, else nothing.
        tags: wandb: words to find the run by.
        notes: wandb: a longer text about it.
        job_type: wandb: the kind of run within its group.
        mode: wandb: online, offline or disabled.
        table: wandb: so many predictions are sent as a table with their images; 0: none.
        artifact: wandb: whether what was trained is sent, too.
    """

    name: Annotated[str, Choice("none", *TRACKERS)] = "none"
    also: Annotated[list[str], Choice(*TRACKERS)] = field(default_factory=list)
    project: str = "vlatrain"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    job_type: str = "train"
    mode: Annotated[str, Choice("online", "offline", "disabled")] = "online"
    table: Annotated[int, NOT_NEGATIVE] = 100
    artifact: bool = True

    @property
    def trackers(self) -> list[str]:
        """All that are chosen, each once."""
        return [name for name in dict.fromkeys((self.name, *self.also)) if name in TRACKERS]
