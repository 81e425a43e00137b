"""Where runs lie: naming a new one, finding and reading a finished one. No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from vlatrain.config.errors import UserError
from vlatrain.config.keys import nearest
from vlatrain.config.schema import EvalConfig, MergeConfig, PredictConfig, TrainConfig

CONFIG = "config.yaml"
ADAPTER = "adapter"  # folder in a run that holds what was trained
ROOT = Path("outputs")


def run_folder(config: TrainConfig) -> Path:
    """The run folder: `run.dir`, else `outputs/<task>/<model>/<run.name>`; for eval and predict, the run asked about;
    for merge, the new one.

    The command line has filled `run.name` by then (`name_run`); it is the same for every process of a training.
    """
    if isinstance(config, (EvalConfig, PredictConfig)):
        return Path(config.source)
    if isinstance(config, MergeConfig):
        return Path(config.output)
    if config.run.dir:
        return Path(config.run.dir)
    if not config.run.name:
        name_run(config)
    return ROOT / config.task.name / config.model.name / str(config.run.name)


def name_run(config: TrainConfig, job: str = "", stamp: str | None = None) -> None:
    """Fill `run.name`, in place.

    Args:
        config: the configuration.
        job: what tells a job of a sweep from the others; part of its name and folder even where they are fixed.
        stamp: name for runs that have none; null: `new_name()`.
    """
    name = config.run.name or (Path(config.run.dir).name if config.run.dir else (stamp or new_name()))
    if job and config.run.dir:
        config.run.dir = str(Path(config.run.dir) / job)
    config.run.name = f"{name}-{job}" if job else name


def name_output(config: EvalConfig, job: str = "") -> str:
    """The folder of an evaluation's results: `output`, by default `<run>/eval-<split>`; in a sweep, one in it for each job."""
    return str(Path(config.output or Path(config.source) / f"eval-{config.split}") / job)


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


def save_config(config: TrainConfig, folder: Path) -> Path:
    """Write the resolved configuration to `<folder>/config.yaml`, as plain values.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=120)
    path.write_text(text, encoding="utf-8")
    return path


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a finished run, as plain values. Nothing in it can execute or be interpolated.

    Raises:
        UserError: the folder is not a run; the runs nearby are named.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        what = f"has no {CONFIG}, so it is no run" if folder.is_dir() else "there is no such folder"
        raise UserError(f"run={folder}: {what}; {_nearby(folder)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a run's configuration")
    return _escaped(values)


def runs_below(folder: Path, depth: int = 4) -> list[Path]:
    """The runs in a folder, newest first."""
    patterns = ["/".join(["*"] * level + [CONFIG]) for level in range(depth + 1)]
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    return [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)]


def _nearby(folder: Path, most: int = 5) -> str:
    above = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path())
    # An existing ancestor such as `/` or the home folder is no place to search.
    inside = above if above not in (Path(), Path("/"), Path.home()) else ROOT
    runs = runs_below(inside) or runs_below(ROOT)
    if not runs:
        return "there are no runs in outputs/ yet; `vlatrain` makes one"
    best = nearest(str(folder), [str(run) for run in runs])
    names = [best] if best else []
    names += [str(run) for run in runs[:most] if str(run) != best]
    return "there are: " + ", ".join(names[:most])


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
