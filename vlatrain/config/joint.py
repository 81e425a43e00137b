"""Joint training: several tasks, each with its own data, in one run.

A part is a task under a name of the user's own. What its configuration does not say is as in the YAML file of its task, and its
data as in `data`, but for what `data.parts` says.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from vlatrain.config.data import DataConfig
from vlatrain.config.errors import UserError
from vlatrain.config.keys import did_you_mean, problems_in
from vlatrain.config.model import ModelTaskConfig
from vlatrain.config.schema import PredictConfig, TrainConfig
from vlatrain.config.spec import IMAGE, QUESTION, TEXT, MetricSpec, described, shipped_spec, shipped_tasks, typed_spec
from vlatrain.config.task import TaskConfig

JOINT = "joint"
MEAN = "mean"  # the headline metric: the mean of the parts'
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")  # part of sample ids, metrics' names and an adapter's keys

Config = TypeVar("Config", bound=TrainConfig)


def tasks(config: TaskConfig) -> dict[str, TaskConfig]:
    """The tasks of a joint one by the names of its parts; empty for any other.

    Raises:
        UserError: parts that are none.
    """
    if found := task_problems(config):
        raise UserError(found)
    return {name: own if isinstance(own, TaskConfig) else _subtask(name, own) for name, own in config.parts.items()}


def completed(config: TaskConfig) -> TaskConfig:
    """A task whose subtasks are typed, where they are sound."""
    if not config.parts or task_problems(config):
        return config
    return dataclasses.replace(config, parts=tasks(config))


def scores(config: TaskConfig) -> dict[str, MetricSpec]:
    """The scores of a task by name; of a joint one those of its parts, too, as PART/NAME."""
    found = {metric.name: metric for metric in config.spec.metrics}
    if config.name == JOINT:
        for part, task in tasks(config).items():
            found |= {f"{part}/{name}": metric for name, metric in scores(task).items()}
    return found


def subtasks(config: Config) -> dict[str, Config]:
    """The parts of a joint run by name, each the configuration of a run of its own; any other run itself under an empty name.

    Raises:
        UserError: parts that are none, or data for parts that there are not.
    """
    if config.task.name != JOINT:
        return {"": config}
    if found := problems(config):
        raise UserError(found)
    return {
        name: dataclasses.replace(config, task=task, data=_data(config.data, config.data.parts.get(name, {})))
        for name, task in tasks(config.task).items()
    }


def served(config: TrainConfig) -> dict[str, ModelTaskConfig]:
    """How the backbone serves tasks that its description does not name: as it serves those that they say (`TaskSpec.served_as`)."""
    known, parts = config.model.tasks, {} if task_problems(config.task) else tasks(config.task)
    wanted = {task.name: task.spec.served_as for task in (config.task, *parts.values()) if task.name not in known}
    return {name: known[like] for name, like in wanted.items() if like in known}


def problems(config: TrainConfig) -> list[str]:
    """What is wrong with the parts as such: unknown names and keys, and wrong types."""
    found = task_problems(config.task)
    if config.task.name != JOINT:
        found += [f"data.parts.{name}: only task=joint has parts" for name in config.data.parts]
        if isinstance(config, PredictConfig) and config.part is not None:
            found.append(f"part={config.part}: only a joint run has parts")
        return found
    for name, value in config.data.parts.items():
        key = f"data.parts.{name}"
        if name not in config.task.parts:
            known = tuple(config.task.parts)
            found.append(f"{key}: there is no such part; there are {', '.join(known)}{did_you_mean(name, known)}")
        elif isinstance(value, Mapping):
            found += problems_in(DataConfig, value, source=key)
            found += [f"{key}.parts: a part has no parts of its own"] * bool(value.get("parts"))
        elif not isinstance(value, DataConfig):
            found.append(f"{key}={value}: expected keys of data, such as {{train: FILE}}")
    return found


def asked(config: PredictConfig) -> str:
    """The part that a prediction asks: the one named, else the only one that the query fits; empty if the run is not joint.

    Raises:
        UserError: it cannot be told.
    """
    known = subtasks(config)
    if config.task.name != JOINT:
        return ""
    if config.part is not None:
        if config.part not in known:
            raise UserError(
                f"part={config.part}: there is no such part; there are {', '.join(known)}{did_you_mean(config.part, [*known])}"
            )
        return config.part
    query = QUESTION if config.question else TEXT if config.text or config.texts else IMAGE
    fitting = [name for name, part in known.items() if part.task.spec.query == query and not config.input]
    if len(known) == 1:
        fitting = list(known)
    if len(fitting) != 1:
        told = ", ".join(
            f"{name} ({part.task.name})" if name != part.task.name else name for name, part in known.items()
        )
        raise UserError(f"this run has several parts: say which one is asked with part=, one of {told}")
    return fitting[0]


def task_problems(config: TaskConfig) -> list[str]:
    """What is wrong with the parts of a task as such."""
    return list(_task_problems(config))


def _task_problems(config: TaskConfig) -> Iterator[str]:
    if config.name != JOINT:
        if config.parts:
            yield f"task.parts: only task=joint has parts, and this is task={config.name}"
        return
    if not config.parts:
        yield "task=joint: needs parts, such as +task@task.parts.mine=vqa"
    known = tuple(name for name in shipped_tasks() if name != JOINT)
    for name, value in config.parts.items():
        key = f"task.parts.{name}"
        if not _NAME.fullmatch(str(name)):
            yield f"{key}: a part's name is made of letters, digits, _ and -, and begins with a letter"
        if isinstance(value, TaskConfig):
            own = value.name
        elif isinstance(value, Mapping):
            yield from problems_in(TaskConfig, value, source=key)
            if "name" not in value and name not in known:
                yield f"{key}: of which task is it? set {key}.name, one of {', '.join(known)}"
                continue
            own = value.get("name", name)
            if own != JOINT and value.get("spec"):  # one of the user's own
                continue
        else:
            yield f"{key}={value}: expected a task, such as {{name: vqa}}"
            continue
        if own not in known and not (own != JOINT and isinstance(value, TaskConfig)):
            yield f"{key}.name={own}: must be one of {', '.join(known)}{did_you_mean(str(own), known)}"


def _data(shared: DataConfig, value: DataConfig | Mapping[str, Any]) -> DataConfig:
    own = value if isinstance(value, DataConfig) else _put(shared, value)
    return dataclasses.replace(own, parts={})


def _subtask(part: str, values: Mapping[str, Any]) -> TaskConfig:
    """The task of a part: what its values do not say is as in the file of the shipped task of its name."""
    name = values.get("name", part)
    spec = typed_spec(values["spec"]) if values.get("spec") else shipped_spec(name)
    made = TaskConfig(name=name)
    for given in (described(name), values):
        made = _put(made, {key: value for key, value in given.items() if key != "spec"})
    made.spec = spec
    return made


def _put(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a configuration with other values in it."""
    made = copy.deepcopy(config)
    for key, value in values.items():
        inner = getattr(made, key)
        nested = dataclasses.is_dataclass(inner) and isinstance(value, Mapping)
        setattr(made, key, _put(inner, value) if nested else copy.deepcopy(value))
    return made
