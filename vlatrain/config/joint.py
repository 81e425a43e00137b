"""Joint training: several tasks, each with its own data, in one run.

A subtask is a task under a name of the user's own. What its configuration does not say is as in the YAML file of its task, and its
data as in `data`, but for what `data.subtasks` says.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from vlatrain.config.data import DataConfig
from vlatrain.config.errors import UserError
from vlatrain.config.keys import did_you_mean, problems_in
from vlatrain.config.model import LOCATION_WORDS, LOCATIONS, ModelTaskConfig
from vlatrain.config.schema import PredictConfig, TrainConfig
from vlatrain.config.spec import IMAGE, QUESTION, TEXT, MetricSpec, described, shipped_spec, shipped_tasks, typed_spec
from vlatrain.config.task import TaskConfig

JOINT = "joint"
MEAN = "mean"  # the headline metric: the mean of the subtasks'
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")  # part of sample ids, metrics' names and an adapter's keys

Config = TypeVar("Config", bound=TrainConfig)


def tasks(config: TaskConfig) -> dict[str, TaskConfig]:
    """The subtasks of a joint task by name; empty for any other task.

    Raises:
        UserError: a subtask is not a task.
    """
    if found := task_problems(config):
        raise UserError(found)
    return {name: own if isinstance(own, TaskConfig) else _subtask(name, own) for name, own in config.subtasks.items()}


def completed(config: TaskConfig) -> TaskConfig:
    """A task whose subtasks are typed, where they are sound."""
    if not config.subtasks or task_problems(config):
        return config
    return dataclasses.replace(config, subtasks=tasks(config))


def scores(config: TaskConfig) -> dict[str, MetricSpec]:
    """The scores of a task by name. A joint task also has those of its subtasks, as SUBTASK/NAME."""
    found = {metric.name: metric for metric in config.spec.metrics}
    if config.name == JOINT:
        for subtask, task in tasks(config).items():
            found |= {f"{subtask}/{name}": metric for name, metric in scores(task).items()}
    return found


def subtasks(config: Config) -> dict[str, Config]:
    """The subtasks of a joint run by name, each as the configuration of a run of its own. Any other run is under an empty name.

    Raises:
        UserError: a subtask is not a task, or there is data for a subtask that does not exist.
    """
    if config.task.name != JOINT:
        return {"": config}
    if found := problems(config):
        raise UserError(found)
    return {
        name: dataclasses.replace(config, task=task, data=_data(config.data, config.data.subtasks.get(name, {})))
        for name, task in tasks(config.task).items()
    }


def served(config: TrainConfig) -> dict[str, ModelTaskConfig]:
    """How the backbone serves tasks that its description does not name, as it serves those that they say (`TaskSpec.served_as`);
    and a joint task with a subtask that has a head of its own, which is then the joint task's, too."""
    known, own = config.model.tasks, {} if task_problems(config.task) else tasks(config.task)
    wanted = {task.name: task.spec.served_as for task in (config.task, *own.values()) if task.name not in known}
    found = {name: known[like] for name, like in wanted.items() if like in known}
    if config.model.box_words == LOCATIONS:
        for task in (config.task, *own.values()):
            if task.name in found and "boxes" in task.spec.fields and LOCATION_WORDS not in found[task.name].trained:
                trained = [*found[task.name].trained, LOCATION_WORDS]
                found[task.name] = dataclasses.replace(found[task.name], trained=trained)
    if JOINT in known and own:
        served_own = [found.get(task.name) or known.get(task.name) for task in own.values()]
        found[JOINT] = _with_heads(known[JOINT], [one for one in served_own if one])
    return found


def _with_heads(joint: ModelTaskConfig, subtasks: Iterable[ModelTaskConfig]) -> ModelTaskConfig:
    """A joint task that trains what its subtasks do. What a head reads is computed: a tower is kept only where both are."""
    for own in subtasks:
        if new := [path for path in own.trained if path not in joint.trained]:
            kept = {name: of for name, of in joint.cacheable_inputs.items() if name in own.cacheable_inputs}
            joint = dataclasses.replace(joint, trained=[*joint.trained, *new], cacheable_inputs=kept)
    return joint


def problems(config: TrainConfig) -> list[str]:
    """What is wrong with the subtasks of a run: unknown names and keys, and wrong types."""
    found = task_problems(config.task)
    if config.task.name != JOINT:
        found += [f"data.subtasks.{name}: only task=joint has subtasks" for name in config.data.subtasks]
        if isinstance(config, PredictConfig) and config.subtask is not None:
            found.append(f"subtask={config.subtask}: only a joint run has subtasks")
        return found
    for name, value in config.data.subtasks.items():
        key = f"data.subtasks.{name}"
        if name not in config.task.subtasks:
            known = tuple(config.task.subtasks)
            found.append(f"{key}: there is no such subtask; there are {', '.join(known)}{did_you_mean(name, known)}")
        elif isinstance(value, Mapping):
            found += problems_in(DataConfig, value, source=key)
            found += [f"{key}.subtasks: a subtask has no subtasks of its own"] * bool(value.get("subtasks"))
        elif not isinstance(value, DataConfig):
            found.append(f"{key}={value}: expected keys of data, such as {{train: FILE}}")
    return found


def asked(config: PredictConfig) -> str:
    """The subtask that a prediction asks: the named one, else the only one that the query fits; empty if the run is not joint.

    Raises:
        UserError: it cannot be told.
    """
    known = subtasks(config)
    if config.task.name != JOINT:
        return ""
    if config.subtask is not None:
        if config.subtask not in known:
            raise UserError(
                f"subtask={config.subtask}: there is no such subtask; there are {', '.join(known)}"
                f"{did_you_mean(config.subtask, [*known])}"
            )
        return config.subtask
    query = QUESTION if config.question else TEXT if config.text or config.texts else IMAGE
    fitting = [name for name, subtask in known.items() if subtask.task.spec.query == query and not config.input]
    if len(known) == 1:
        fitting = list(known)
    if len(fitting) != 1:
        told = ", ".join(
            f"{name} ({subtask.task.name})" if name != subtask.task.name else name for name, subtask in known.items()
        )
        raise UserError(f"this run has several subtasks: say which one is asked with subtask=, one of {told}")
    return fitting[0]


def task_problems(config: TaskConfig) -> list[str]:
    """What is wrong with the subtasks of a task, each taken alone."""
    return list(_task_problems(config))


def _task_problems(config: TaskConfig) -> Iterator[str]:
    if config.name != JOINT:
        if config.subtasks:
            yield f"task.subtasks: only task=joint has subtasks, and this is task={config.name}"
        return
    if not config.subtasks:
        yield "task=joint: needs subtasks, such as +task@task.subtasks.mine=vqa"
    known = tuple(name for name in shipped_tasks() if name != JOINT)
    for name, value in config.subtasks.items():
        key = f"task.subtasks.{name}"
        if not _NAME.fullmatch(str(name)):
            yield f"{key}: a subtask's name is made of letters, digits, _ and -, and begins with a letter"
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
        many = value.negatives_per_step if isinstance(value, TaskConfig) else value.get("negatives_per_step")
        if many is not None:
            yield f"{key}.negatives_per_step={many}: task=joint contrasts those of a pass; a retrieval run of its own takes it"
        if own not in known and not (own != JOINT and isinstance(value, TaskConfig)):
            yield f"{key}.name={own}: must be one of {', '.join(known)}{did_you_mean(str(own), known)}"


def _data(shared: DataConfig, value: DataConfig | Mapping[str, Any]) -> DataConfig:
    own = value if isinstance(value, DataConfig) else _put(shared, value)
    return dataclasses.replace(own, subtasks={})


def _subtask(subtask: str, values: Mapping[str, Any]) -> TaskConfig:
    """A subtask, typed. What its values do not say is as in the file of the shipped task of its name."""
    name = values.get("name", subtask)
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
