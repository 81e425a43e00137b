"""The folder of YAML files, and what is in it. Needs neither Hydra nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vlatrain.config.errors import UserError

RECIPES = "experiment"  # the group whose options are over all groups


def conf_dir() -> Path:
    """The folder of YAML files: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"the installation is incomplete: no conf folder in {package} or {package.parent}")


def options_of(folder: Path, first: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """The groups in a folder of YAML files, those of `first` in that order before others, and the options of each."""
    groups = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "hydra")
    groups.sort(key=lambda path: first.index(path.name) if path.name in first else len(first))
    found = {path.name: sorted(_names(path)) for path in groups}
    return {group: names for group, names in found.items() if names}


@cache
def shipped(group: str) -> tuple[str, ...]:
    """The options of a group that vlatrain comes with."""
    return tuple(options_of(conf_dir())[group])


@cache
def set_by(group: str, option: str) -> Mapping[str, Any]:
    """What the YAML file of a shipped option sets, as plain values; nothing if there is no such file."""
    file = conf_dir() / group / f"{option}.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {key: value for key, value in values.items() if key != "defaults"}


def _names(group: Path) -> list[str]:
    """The options of a group; recipes may lie in folders (`experiment=vl_adapter/clip_bart/full`)."""
    if group.name != RECIPES:
        return [file.stem for file in group.glob("*.yaml")]
    return [file.relative_to(group).with_suffix("").as_posix() for file in group.rglob("*.yaml")]


def subgroups_of(folder: Path) -> dict[str, list[str]]:
    """The groups inside groups, such as `model/vision`, and the options of each."""
    groups = sorted(path for path in folder.glob("*/*") if path.is_dir() and path.parent.name not in ("hydra", RECIPES))
    found = {f"{path.parent.name}/{path.name}": sorted(file.stem for file in path.glob("*.yaml")) for path in groups}
    return {group: names for group, names in found.items() if names}
