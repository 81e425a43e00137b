"""From a sound configuration to its verb: what the command line and the Python functions of the package share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlatrain import verbs
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import checkpoints_of
from vlatrain.config import EvalConfig, ExportConfig, MergeConfig, TrainConfig, UserError, hub
from vlatrain.config.checks.settings import problems
from vlatrain.config.joint import subtasks
from vlatrain.config.methods import ROUTER
from vlatrain.runs import COMMAND, Command, evaluation_named, named


def resolved(verb: str, config: TrainConfig, job: str = "", stamp: str | None = None) -> TrainConfig:
    """The configuration with the names of what it writes.

    Args:
        verb: the word of the command line.
        config: its configuration.
        job: what tells a job of a sweep from the others.
        stamp: name for a training that has none; None: made from the time.
    """
    if verb == "train":
        return named(config, job, stamp)
    return evaluation_named(config, job) if isinstance(config, EvalConfig) else config


def call(verb: str, config: TrainConfig, command: Command = Command()) -> Any:  # noqa: B008, immutable
    """Give a sound configuration to its verb.

    Args:
        verb: the word.
        config: its configuration.
        command: what was typed.
    """
    if _needs_hub(verb, config):
        hub.resolve()
    typed = COMMAND.set(command)
    try:
        return verbs.VERBS[verb].call(config)
    finally:
        COMMAND.reset(typed)


def check(config: TrainConfig) -> None:
    """Refuse a training's configuration that was made or changed by hand, before anything slow.

    Raises:
        UserError: everything that is wrong with it.
    """
    if not config.model.tasks:
        raise UserError("the configuration describes no backbone: make it by vlatrain.compose(...)")
    if found := problems(config) or incompatibilities(config):
        raise UserError(found)


def _needs_hub(verb: str, config: TrainConfig) -> bool:
    """Whether weights or data are wanted that lie in no folder of this machine."""
    if (
        verb == "inspect"
        or isinstance(config, MergeConfig)
        or (isinstance(config, ExportConfig) and config.form != "merged")
    ):
        return False
    each = [*subtasks(config).values()]
    loaded = [] if config.model.random_init else each if config.adapter.name == ROUTER else [config]
    wanted = [name for one in loaded for name in checkpoints_of(one.model, one.task.name).values()]
    wanted += [subtask.data.path or "" for subtask in each if subtask.data.name == "hub"]
    return not all(Path(name).expanduser().is_dir() for name in wanted)
