"""Names of runs and of their folders: given, or made from the time. No torch here."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from vlatrain.config.errors import UserError
from vlatrain.config.schema import EvalConfig, ExportConfig, MergeConfig, PredictConfig, TrainConfig
from vlatrain.runs.folder import RunFolder

ROOT = Path("outputs")


def run_folder(config: TrainConfig) -> Path:
    """The run folder: `run.dir`, else `outputs/<task>/<model>/<run.name>`; for eval, predict and export, the run asked about;
    for merge, the new one.

    Args:
        config: the configuration; of a training, what `named` returned.
    """
    if isinstance(config, (EvalConfig, PredictConfig, ExportConfig)):
        return Path(config.source)
    if isinstance(config, MergeConfig):
        return Path(config.output)
    if config.run.dir:
        return Path(config.run.dir)
    assert config.run.name, "a training is named before it begins"
    return ROOT / config.task.name / config.model.name / config.run.name


def named(config: TrainConfig, job: str = "", stamp: str | None = None) -> TrainConfig:
    """The configuration with the name of its run.

    Args:
        config: the configuration.
        job: what tells a job of a sweep from the others; part of its name and folder even where they are fixed.
        stamp: name for runs that have none; null: `new_name()`.
    """
    folder = config.run.dir
    name = config.run.name or (Path(folder).name if folder else (stamp or new_name()))
    if job:
        name, folder = f"{name}-{job}", str(Path(folder) / job) if folder else None
    return replace(config, run=replace(config.run, name=name, dir=folder))


def within(config: TrainConfig, folder: Path) -> TrainConfig:
    """The configuration of a training in a folder, which it may have begun."""
    return replace(config, run=replace(config.run, name=folder.name, dir=str(folder)))


def evaluation_named(config: EvalConfig, job: str = "") -> EvalConfig:
    """The configuration of an evaluation with the folder of its results, where one is chosen; in a sweep, each job has its own."""
    if not job:
        return config
    chosen = config.output or str(RunFolder(Path(config.source)).evaluations / config.split)
    return replace(config, output=str(Path(chosen) / job))


def new_name() -> str:
    """A timestamp and a short id; for the processes of one training, the same in all of them.

    Under `torchrun` and `accelerate launch` the processes of a machine share their parent, which gives time and id.
    Over several machines only the job id given to the launcher is common.

    Raises:
        UserError: several machines and no job id.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        if job == "none":
            raise UserError("training on several machines needs run.name=NAME, the same on each")
        return f"job-{hashlib.sha256(job.encode()).hexdigest()[:8]}"
    import psutil

    parent = psutil.Process(os.getppid())
    started = parent.create_time()
    short = hashlib.sha256(f"{job} {parent.pid} {started}".encode()).hexdigest()[:4]
    return f"{datetime.fromtimestamp(started):%Y%m%d-%H%M%S}-{short}"


def job_name(number: int, overrides: Iterable[str]) -> str:
    """Name of a sweep's job as part of a folder name: `02-dim-64-lr-0.001`. Task and model are in the path already."""
    parts = [f"{number:02d}"]
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key not in ("task", "model"):
            parts.append(f"{key.rpartition('.')[2]}-{value}")
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))[:80].rstrip("-._")
