"""Finding and reading runs, and their configuration, which is restored from a checkpoint where `config.yaml` is damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlatrain.config.errors import UserError
from vlatrain.config.families import VISION_TOWERS
from vlatrain.config.files import MANIFEST, changed, files_in, write_file
from vlatrain.config.keys import nearest
from vlatrain.config.methods import ROUTER
from vlatrain.config.schema import TrainConfig
from vlatrain.config.spec import with_shipped_specs
from vlatrain.runs.folder import RunFolder, steps_in
from vlatrain.runs.naming import ROOT

log = logging.getLogger("vlatrain")

LAST = dataclasses.fields(TrainConfig)[-1].name  # the key that ends a config.yaml
STATE = "state.json"  # of a checkpoint: all that is no tensor
MOST_BYTES = 16_000_000  # of a config.yaml: a hundred thousand answers take two
MOST_VALUES = 2_000_000  # that it stands for, with what its aliases repeat
RENAMED = {"pure": "cacheable_inputs", "ends": "output_towers", "other": "other_modality", "parts": "subtasks"}
"""Keys in the description of a backbone, as configurations saved before have them."""
PARTS = {"task": "subtasks", "data": "subtasks", "adapter": "components", "model": "submodels"}
"""By group, what was called `parts` in configurations saved before."""


@dataclass(frozen=True)
class Run:
    """A finished run, or an evaluation of one, read from its folder when asked.

    Attributes:
        folder: the folder.
    """

    folder: Path

    @property
    def files(self) -> RunFolder:
        """Its files by name."""
        return RunFolder(self.folder)

    @property
    def config(self) -> dict[str, Any]:
        """Its resolved configuration, as plain values."""
        return saved_config(self.folder)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`.

        Raises:
            UserError: it is not finished.
        """
        return dict(_read(self.files.metrics))

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of the training, in order."""
        return _read_lines(self.files.history)

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """Each evaluated sample with its prediction."""
        return _read_lines(self.files.predictions())

    @property
    def evaluations(self) -> list[Run]:
        """The evaluations afterwards, by name."""
        whole = {
            path.parent
            for name in (self.files.metrics.name, MANIFEST)
            for path in self.files.evaluations.glob(f"*/{name}")
        }
        return [Run(folder) for folder in sorted(whole)]


def list_runs(folder: str | Path = ROOT) -> list[Run]:
    """The runs in a folder, newest first.

    Args:
        folder: where they are looked for, four levels deep.
    """
    return [Run(path) for path in runs_below(Path(folder))]


def config_text(config: TrainConfig) -> str:
    """The resolved configuration as plain values: the content of `config.yaml`, kept in each checkpoint too."""
    return plain_text(dataclasses.asdict(config))


def plain_text(values: Mapping[str, Any]) -> str:
    """The same of plain values."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120)


def save_config(config: TrainConfig, folder: Path) -> Path:
    """Write the resolved configuration to `<folder>/config.yaml`.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written.
    """
    path = RunFolder(folder).config
    write_file(path, config_text(config))
    return path


def read_config(folder: str | Path) -> dict[str, Any]:
    """`saved_config` with what OmegaConf would interpolate escaped: nothing in it can execute."""
    config: dict[str, Any] = _escaped(saved_config(folder))
    return config


def saved_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a run, as plain values; that it was restored is said.

    Raises:
        UserError: the folder is not a run (the runs nearby are named), or its configuration is nowhere to be read.
    """
    folder = Path(folder)
    if not is_run(folder):
        what = (
            f"has no {RunFolder(folder).config.name}, so it is no run" if folder.is_dir() else "there is no such folder"
        )
        raise UserError(f"run={folder}: {what}; {_nearby(folder)}")
    values, told = find_config(folder)
    if values is None:
        raise UserError(f"{told}; put a copy in its place, or run the training's own command again with resume=auto")
    if told:
        log.warning(told)
    return _with_own_sources(values, folder)


def _with_own_sources(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values of a configuration in which the runs of an exported router are named from its own folder, where they lie."""
    adapter = values.get("adapter")
    if not isinstance(adapter, dict) or adapter.get("name") != ROUTER or not RunFolder(folder).is_exported:
        return values
    sources = [str(folder.resolve() / str(source)) for source in adapter.get("sources") or []]
    return {**values, "adapter": {**adapter, "sources": sources}}


def find_config(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The configuration of a run. A `config.yaml` that is missing or cannot be read is restored from the newest checkpoint.

    Returns:
        Its plain values, None if there are none; and what there is to say of a `config.yaml` that could not be read.
    """
    path = RunFolder(folder).config
    data, values = b"", None
    try:
        data = path.read_bytes()
        values = _parsed(data)
        if not (fault := changed(path)):
            return values, ""
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except ValueError as error:
        fault = str(error)
    text, source = _in_checkpoints(RunFolder(folder).checkpoints)
    if source is None:
        return None, f"{path}: {fault}, and no checkpoint holds the configuration"
    if data == text.encode():  # restored before
        return values, ""
    beside = path.with_name(f"{path.stem}.changed{path.suffix}")
    with suppress(UserError):  # a folder that cannot be written can be read all the same
        if values is not None:  # somebody may have changed it on purpose
            write_file(beside, data)
        write_file(path, text)
    kept = f", and what was there is in {beside.name}" if values is not None else ""
    return _parsed(text.encode()), f"{path}: {fault}; it is restored from {source}{kept}"


def is_run(folder: Path) -> bool:
    """Whether a run was begun in a folder: it has a configuration, or checkpoints, which hold it too."""
    files = RunFolder(folder)
    return files.config.is_file() or bool(steps_in(files.checkpoints))


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
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data) / 1e6:.0f} MB: a run's configuration has at most {MOST_BYTES / 1e6:.0f} MB")
    try:
        values = _loaded(data.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"not readable as YAML: {_one_line(error)}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply for a run's configuration") from error
    if not isinstance(values, dict):
        raise ValueError("not a run's configuration")
    if LAST not in values:  # cut between two lines, it is sound YAML
        raise ValueError(f"cut short: its last key, {LAST}, is missing")
    return _renamed(values)


def _loaded(text: str) -> Any:
    """The values of a YAML text, whose aliases may not multiply it: a few lines can stand for billions of values.

    Raises:
        ValueError: they do.
        yaml.YAMLError, RecursionError: it is no YAML, or nested too deeply.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if _expanded(node, {}) > MOST_VALUES:
            raise ValueError(f"its aliases stand for over {MOST_VALUES:,} values, which no run's configuration has")
        return loader.construct_document(node) if node is not None else None
    finally:
        loader.dispose()


def _expanded(node: Any, known: dict[int, float]) -> float:
    """How many values a node stands for; infinitely many, if it is inside itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known: whoever asks meanwhile is inside of it
        pairs = isinstance(node, yaml.MappingNode)
        inner = [one for pair in node.value for one in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_expanded(one, known) for one in inner)
    return known[id(node)]


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration that was saved before, with the keys of today."""
    for group, new in PARTS.items():
        _rename_parts(values.get(group), new)
    model = values.get("model") or {}
    for described in [*(model.get("tasks") or {}).values(), *(model.get("submodels") or {}).values()]:
        for old, new in RENAMED.items():
            if isinstance(described, dict) and old in described:
                described[new] = described.pop(old)
        if isinstance(described, dict) and "samples_per_pass" in described:
            described["samples_per_step"] = described.pop("samples_per_pass") * described.pop("passes_per_step", 1)
    if model.get("family") in VISION_TOWERS and "image_size" in (model.get("options") or {}):
        model["submodels"]["vision"]["image_size"] = model["options"].pop("image_size")
    _keep_splits(values)
    return values


def _keep_splits(values: dict[str, Any]) -> None:
    """Before `data.stratify`, hold-outs and caps of samples with classes were drawn from all of them: a run keeps its own."""
    data = values.get("data")
    if isinstance(data, dict) and "stratify" not in data:
        task = with_shipped_specs(values.get("task") or {})
        known = [task, *(one for one in task.get("subtasks", {}).values() if isinstance(one, dict))]
        if any("label" in one["spec"].get("fields", ()) for one in known):
            data["stratify"] = False


def _rename_parts(values: Any, new: str) -> None:
    """Rename the key `parts` of a group, of all that it holds, and of what a method needs."""
    if not isinstance(values, dict):
        return
    if "parts" in values:
        values[new] = values.pop("parts")
    if "parts" in (values.get("needs") or []):
        values["needs"] = [new if need == "parts" else need for need in values["needs"]]
    inner = values.get(new)
    for value in inner.values() if isinstance(inner, dict) else ():
        _rename_parts(value, new)


def refuse_changed(folder: Path, missing: bool = True) -> None:
    """Refuse what was trained if a file of it is not as it was written: a bit that flipped is in no way to be seen otherwise.

    Args:
        folder: the folder of an adapter; of earlier versions there is no hash, which is said.
        missing: whether files may be missing, as whoever reads them says it better.

    Raises:
        UserError: a file has changed.
    """
    try:
        files_in(folder, missing=missing)
    except FileNotFoundError:
        log.info("%s has no hash, as those of before had none: whether it has changed cannot be told", folder)
    except ValueError as error:
        raise UserError(
            f"{folder}: {error}: it is not what was trained. Copy it again from where it was; or, in its run folder, the "
            "training's command with resume=auto writes it anew from the checkpoint"
        ) from error


def refuse_changed_file(path: Path) -> None:
    """Refuse a file of a run that is not as it was written.

    Raises:
        UserError: what is wrong with it.
    """
    if fault := changed(path):
        raise UserError(
            f"{path}: {fault}; copy it again from where it was, or run again what wrote it (a training: with resume=auto)"
        )


def runs_below(folder: Path, depth: int = 4) -> list[Path]:
    """The runs in a folder, newest first."""
    of_any = RunFolder(Path())
    patterns = ["/".join(["*"] * level + [of_any.config.name]) for level in range(depth + 1)]
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    files = [file for file in files if file.parent.parent.name != of_any.evaluations.name]
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


def _read(path: Path) -> Any:
    refuse_changed_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is none: the run is not finished") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({_one_line(error)})") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    refuse_changed_file(path)
    if not path.exists():
        return []
    try:
        return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({_one_line(error)})") from error
