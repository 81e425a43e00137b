"""Where runs lie: naming a new one, finding and reading a finished one. No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from vlatrain.config.errors import UserError
from vlatrain.config.files import write_file
from vlatrain.config.keys import nearest
from vlatrain.config.schema import EvalConfig, MergeConfig, PredictConfig, TrainConfig

log = logging.getLogger("vlatrain")

CONFIG = "config.yaml"
LAST = dataclasses.fields(TrainConfig)[-1].name  # the key that ends it
ADAPTER = "adapter"  # folder in a run that holds what was trained
CHECKPOINTS = "checkpoints"  # folder in a run that holds `step_N`, each with these files:
MANIFEST, STATE = "manifest.json", "state.json"
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


def config_text(config: TrainConfig) -> str:
    """The resolved configuration as plain values: the content of `config.yaml`, kept in each checkpoint too."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=120)


def save_config(config: TrainConfig, folder: Path) -> Path:
    """Write the resolved configuration to `<folder>/config.yaml`.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written.
    """
    write_file(folder / CONFIG, config_text(config))
    return folder / CONFIG


def read_config(folder: str | Path) -> dict[str, Any]:
    """`saved_config` with what OmegaConf would interpolate escaped: nothing in it can execute."""
    return _escaped(saved_config(folder))


def saved_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a run, as plain values; that it was restored is said.

    Raises:
        UserError: the folder is not a run (the runs nearby are named), or its configuration is nowhere to be read.
    """
    folder = Path(folder)
    if not is_run(folder):
        what = f"has no {CONFIG}, so it is no run" if folder.is_dir() else "there is no such folder"
        raise UserError(f"run={folder}: {what}; {_nearby(folder)}")
    values, told = find_config(folder)
    if values is None:
        raise UserError(f"{told}; put a copy in its place, or run the training's own command again with resume=auto")
    if told:
        log.warning(told)
    return values


def find_config(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The configuration of a run. A `config.yaml` that is missing or cannot be read is restored from the newest checkpoint.

    Returns:
        Its plain values, None if there are none; and what there is to say of a `config.yaml` that could not be read.
    """
    path = folder / CONFIG
    try:
        return _parsed(path.read_bytes()), ""
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except ValueError as error:
        fault = str(error)
    text, source = _in_checkpoints(folder / CHECKPOINTS)
    if source is None:
        return None, f"{path}: {fault}, and no checkpoint holds the configuration"
    with suppress(UserError):  # a folder that cannot be written can be read all the same
        write_file(path, text)
    return _parsed(text.encode()), f"{path}: {fault}; it is restored from {source}"


def is_run(folder: Path) -> bool:
    """Whether a run was begun in a folder: it has a configuration, or checkpoints, which hold it too."""
    return (folder / CONFIG).is_file() or bool(steps_in(folder / CHECKPOINTS))


def steps_in(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints in a folder."""
    found = (re.fullmatch(r"step_(\d+)", path.name) for path in checkpoints.glob("step_*") if path.is_dir())
    return [int(match[1]) for match in found if match]


def _in_checkpoints(folder: Path) -> tuple[str, Path | None]:
    """The configuration's text in the newest checkpoint that holds it unharmed, and that checkpoint; None: there is none."""
    for step in sorted(steps_in(folder), reverse=True):
        checkpoint = folder / f"step_{step}"
        with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one, or one of an earlier version
            files = json.loads((checkpoint / MANIFEST).read_bytes())["files"]
            state = (checkpoint / STATE).read_bytes()
            if hashlib.sha256(state).hexdigest() == files[STATE]["sha256"]:
                return json.loads(state)["config"], checkpoint
    return "", None


def _parsed(data: bytes) -> dict[str, Any]:
    """The values in a `config.yaml`.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        values = yaml.safe_load(data.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"not readable as YAML: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise ValueError("not a run's configuration")
    if LAST not in values:  # cut between two lines, it is sound YAML
        raise ValueError(f"cut short: its last key, {LAST}, is missing")
    return values


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
