"""What the description of a backbone says before anything is loaded. No torch here.

A backbone's layers are counted from its transformers settings: the checkpoint's `config.json` where it is a folder or was fetched
from the hub before, else those in the description (`model.config`), so that patterns can be checked and a backbone inspected with
neither weights nor network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from packaging.version import Version

from vlatrain.config import ModelConfig, TrainConfig, UserError, hub
from vlatrain.config.families import COMPOSITES, VISION_TOWERS
from vlatrain.config.model import SiteConfig, TowerConfig
from vlatrain.injection.points import PROJECTION, Place, Sites, Stack, select

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED = "assets:"
SETTINGS = {"vision": "vision_config", "language": "text_config"}  # keys of the settings of a composite's submodels
HEADED = "vlatrain_headed"  # `model_type` of a vision tower that was saved with its head


def checkpoint_of(config: ModelConfig, task: str) -> str:
    """Folder or hub name of the weights for a task; those of a composite's submodels together.

    Raises:
        UserError: the backbone does not serve the task.
    """
    return " + ".join(checkpoints_of(config, task).values())


def checkpoints_of(config: ModelConfig, task: str) -> dict[str, str]:
    """Folder or hub name of the weights for a task: those of each submodel of a composite, else one under an empty name.

    Raises:
        UserError: the backbone does not serve the task.
    """
    if task not in config.tasks:
        raise UserError(f"model={config.name} does not serve task={task}; it serves {', '.join(config.tasks)}")
    names = {"": config.checkpoint or config.tasks[task].checkpoint}
    if config.family in VISION_TOWERS:
        names = {"vision": names[""] or config.submodels["vision"].checkpoint}
    elif config.submodels and not config.checkpoint:
        names = {name: submodel.checkpoint for name, submodel in config.submodels.items() if submodel.checkpoint}
    return {
        submodel: str(ASSETS / name.removeprefix(SHIPPED)) if name.startswith(SHIPPED) else name
        for submodel, name in names.items()
    }


def revisions_of(config: ModelConfig, task: str) -> dict[str, str | None]:
    """The revisions of the checkpoints for a task, by submodel as in `checkpoints_of`; None: the hub's main branch."""
    return {
        name: (config.submodels[name].revision if name in config.submodels and not config.checkpoint else None)
        or config.revision
        for name in checkpoints_of(config, task)
    }


def folders_of(config: ModelConfig, task: str) -> dict[str, Path | None]:
    """Where on this machine the checkpoints for a task are: folders, or what the hub's cache has of them; None: nowhere yet."""
    names, revisions = checkpoints_of(config, task), revisions_of(config, task)

    def fetched(submodel: str) -> Path | None:
        folder = hub.cached(names[submodel], revisions[submodel])
        # another program may have put but a part of it there
        return folder if folder is not None and (folder / "config.json").is_file() else None

    return {submodel: Path(name) if Path(name).is_dir() else fetched(submodel) for submodel, name in names.items()}


def is_plain(config: TrainConfig) -> bool:
    """Whether one class of transformers, with the weights of one checkpoint, is the whole backbone: no composite, no new head."""
    model = config.model
    return model.family not in (*COMPOSITES, *VISION_TOWERS) and not model.random_init and not config.served.trained


def settings_of(config: ModelConfig, task: str) -> dict[str, Any]:
    """The transformers settings: of the checkpoint where it is a folder or in the hub's cache, else those in the description.

    Raises:
        UserError: the folder has no readable `config.json`.
    """
    found = _merged(config.config, config.tasks[task].config)
    for submodel, folder in folders_of(config, task).items() if not config.random_init else ():
        if folder is None:
            continue
        read, key = _read(folder), SETTINGS.get(submodel, "")
        # the part of a larger model (CLIP's image tower), or a model of its own
        found = {**found, key: {"model_type": found[key]["model_type"], **read.get(key, read)}} if key else read
    return found


def has_trained_head(config: ModelConfig, task: str) -> bool | None:
    """Whether the checkpoint of a vision tower is one that was saved with the head that was trained on it; None: it is one of the
    hub that is not here yet, and may be."""
    if config.random_init:
        return False
    folders = [*folders_of(config, task).values()]
    if config.checkpoint and None in folders:
        return None
    return any(folder is not None and _read(folder).get("model_type") == HEADED for folder in folders)


def _read(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
            raise ValueError("it has no model_type, so it is of no model of transformers")
        return settings
    except (OSError, ValueError) as error:
        raise UserError(f"model.checkpoint={folder}: no readable config.json ({error})") from error


def stacks(config: ModelConfig, task: str) -> dict[str, Stack]:
    """The towers that serve a task as patterns see them, in the order data flows.

    Raises:
        UserError: the task is not served, or the settings lack a tower's depth.
    """
    settings, served = settings_of(config, task), config.tasks[task]
    return {
        name: Stack(
            number_in(settings, config, name, "depth"),
            tuple(config.towers[name].sites),
            end=name in served.output_towers,
            every={
                site: _number(settings, config, found.every, f"distance of the {site} sites of the {name} tower")
                for site, found in config.towers[name].sites.items()
                if found.every
            },
            projection=config.towers[name].projection in served.heads,
        )
        for name in served.towers
    }


def widths(config: ModelConfig, task: str) -> dict[str, int]:
    """Width of each tower's states, and of those that towers are handed.

    Raises:
        UserError: the task is not served, or the settings lack a width.
    """
    settings, served = settings_of(config, task), config.tasks[task]
    names = dict.fromkeys([*served.towers, *served.other_modality.values()])
    return {name: number_in(settings, config, name, "width") for name in names}


def sites(config: ModelConfig, task: str, patterns: Iterable[str]) -> Sites:
    """The points that patterns select in a backbone, with their places.

    Raises:
        UserError: the task is not served, or patterns do not parse or select nothing.
    """
    towers = stacks(config, task)
    points = select(patterns, towers)
    settings, served, width = settings_of(config, task), config.tasks[task], widths(config, task)
    attended = crossed(config, task)
    places = {}
    for point in points:
        tower = config.towers[point.tower]
        if point.site == PROJECTION:
            path = tower.projection
            places[point] = Place(output=path, input=path, modules={PROJECTION: path})
            continue
        site, layer = _site(tower, point.site, settings), f"{tower.layers}.{point.layer}"
        other = served.other_modality.get(point.tower, "")
        crosses = point.layer % towers[point.tower].every.get("cross", 1) == 0
        cross = attended.get(point.tower, "") if crosses else ""
        places[point] = Place(
            output=f"{layer}.{_path(tower, site.output)}",
            input=f"{layer}.{_path(tower, site.input)}",
            layer=layer,
            layers=tower.layers,
            modules={role: f"{layer}.{_path(tower, path)}" for role, path in site.modules.items()},
            width=width[point.tower],
            heads=number_in(settings, config, point.tower, "heads"),
            other=other,
            other_width=width.get(other, 0),
            cross=cross,
            cross_width=width.get(cross, 0),
            end=towers[point.tower].end,
            causal=tower.causal,
        )
    inside = {name: _inside(config.towers[name]) for name in served.towers}
    return Sites(places, towers, served.heads, served.features, served.trained, inside)


def _site(tower: TowerConfig, name: str, settings: dict[str, Any]) -> SiteConfig:
    """A site as the architecture with these settings has it."""
    site = tower.sites[name]
    for variant in tower.variants.values():
        key, _, values = variant.when.partition("=")
        if str(_at(settings, key)) in values.split("|") and (own := variant.sites.get(name)):
            site = replace(
                site,
                output=own.output or site.output,
                input=own.input or site.input,
                modules=own.modules or site.modules,
            )
    return site


def _path(tower: TowerConfig, path: str) -> str:
    """A module's path in the release of transformers that is installed."""
    found = (before[path] for new, before in tower.renamed.items() if path in before and _installed() < Version(new))
    return next(found, path)


@cache
def _installed() -> Version:
    return Version(version("transformers"))


def crossed(config: ModelConfig, task: str) -> dict[str, str]:
    """By tower with cross-attention, the tower that it attends to: the one that data flows from."""
    towers = config.tasks[task].towers
    return {name: before for before, name in pairwise(towers) if "cross" in config.towers[name].sites}


def _inside(tower: TowerConfig) -> dict[str, str]:
    """The modules that a tower consists of, by role."""
    known = {"layers": tower.layers, "embeddings": tower.embeddings, "norm": tower.norm, **tower.outside}
    return {role: path for role, path in known.items() if path}


def number_in(settings: dict[str, Any], config: ModelConfig, tower: str, what: str) -> int:
    """A tower's `depth`, `width` or `heads` from the settings; what a checkpoint's leave out is as in the description.

    Raises:
        UserError: neither has it.
    """
    return _number(settings, config, getattr(config.towers[tower], what), f"{what} of the {tower} tower")


def positions_in(settings: dict[str, Any], tower: TowerConfig) -> int | None:
    """The number of positions that a tower has for tokens, from a loaded model's settings; None: there is no limit."""
    return None if tower.positions == "relative" else _value(settings, tower.max_positions)


def _number(settings: dict[str, Any], config: ModelConfig, key: str, meaning: str) -> int:
    for values in (settings, config.config):
        if (found := _value(values, key)) is not None:
            return found
    raise UserError(f"model={config.name}: its settings lack {key or meaning.partition(' ')[0]}, the {meaning}")


def _value(settings: dict[str, Any], key: str) -> int | None:
    """The number under a key as `TowerConfig.depth` describes them; None: there is none."""
    for alternative in key.split("|"):
        name, _, less = alternative.partition(" - ")
        if isinstance(value := _at(settings, name), int):
            return value - int(less or 0)
    return None


def _at(settings: dict[str, Any], name: str) -> Any:
    """What is under a dotted key; None: nothing is."""
    value: Any = settings
    for part in name.split("."):
        if isinstance(value, list | tuple) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _merged(settings: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Settings with others in their place, nested ones too."""
    nested = {
        key: _merged(settings[key], value)
        for key, value in own.items()
        if isinstance(value, dict) and isinstance(settings.get(key), dict)
    }
    return {**settings, **own, **nested}
