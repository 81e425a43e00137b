"""The code of a model card: what loads what was trained, and asks it. Each is whole, and runs where the backbone can be had."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vlatrain.backbones.describe import ASSETS, checkpoints_of, is_plain, revisions_of
from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.config.joint import subtasks
from vlatrain.config.methods import BARE, ROUTER
from vlatrain.config.spec import QUESTION, TEXT
from vlatrain.runs import hub_name

PHOTO, WHAT = "photo.jpg", "what is it?"


def loading(config: TrainConfig, run: str) -> str:
    """Code that loads a run by vlatrain and asks it, of a joint one each subtask.

    Args:
        config: the run's configuration.
        run: its folder, or `hub:OWNER/NAME`.
    """
    lines = ["import vlatrain", ""]
    if config.adapter.name == ROUTER:  # which picks the subtask
        asked = f"model.predict({_quoted(PHOTO)}, question={_quoted(WHAT)})"
        return "\n".join([*lines, f"model = vlatrain.load({_quoted(run)})", f"print({asked})"])
    for name, subtask in subtasks(config).items():
        own = f", subtask={_quoted(name)}" if name else ""
        lines += [f"model = vlatrain.load({_quoted(run)}{own})"]
        lines += [f"print(model.predict({_quoted(PHOTO)}{_query(subtask.task)}))"]
    return "\n".join(lines)


def checkpoint(config: TrainConfig, folder: str) -> str:
    """Code that loads a checkpoint with the adapter in its weights.

    Args:
        config: the run's configuration.
        folder: the checkpoint's folder, or its name on the hub.
    """
    kind, name = config.served.architecture, _quoted(folder)
    return (
        f"from transformers import AutoProcessor, {kind}\n\nmodel = {kind}.from_pretrained({name})\n"
        f"processor = AutoProcessor.from_pretrained({name})"
    )


def words_of_backbone(config: TrainConfig, folder: str) -> list[str]:
    """The words of a command line that take a checkpoint as the backbone.

    Args:
        config: the configuration of the run that it was made from.
        folder: the checkpoint's folder, or `hub:OWNER/NAME`.
    """
    name = hub_name(folder) or folder
    return [f"task={config.task.name}", f"model={config.model.name}", f"model.checkpoint={name}", "adapter=none"]


def backbone(config: TrainConfig, folder: str) -> str:
    """Code that scores a checkpoint by vlatrain, and asks it; see `words_of_backbone`."""
    words = ", ".join(map(_quoted, words_of_backbone(config, folder)))
    lines = ["import vlatrain", "", f"run = vlatrain.train(vlatrain.compose({words}))"]
    return "\n".join([*lines, f"print(vlatrain.load(run).predict({_quoted(PHOTO)}{_query(config.task)}))"])


def by_peft(config: TrainConfig, folder: str, trunk: bool, ours: bool = True) -> str:
    """Code that loads the backbone by transformers and the adapter by PEFT; empty where that is not all of the model.

    Args:
        config: the run's configuration.
        folder: the adapter's folder, or its name on the hub (`hub:OWNER/NAME`).
        trunk: whether weights of the trunk lie beside the adapter.
        ours: whether it needs vlatrain.
    """
    if config.adapter.name in (*BARE, ROUTER) or not is_plain(config):
        return ""
    lines = list(_by_peft(config, folder, trunk))
    if ours or any("vlatrain." in line for line in lines):
        lines.insert(0, f"import vlatrain{'  # makes the method known to PEFT' if ours else ''}")
    return "\n".join(lines)


def _by_peft(config: TrainConfig, folder: str, trunk: bool) -> Iterator[str]:
    kind, mixed, remote = config.served.architecture, bool(config.adapter.components), hub_name(folder)
    (name,) = checkpoints_of(config.model, config.task.name).values()
    (revision,) = revisions_of(config.model, config.task.name).values()
    shipped = Path(name).is_relative_to(ASSETS)
    files = bool(remote) and (mixed or trunk)  # what PEFT itself does not fetch
    if shipped:
        yield "from pathlib import Path"
    if files:
        yield "from huggingface_hub import snapshot_download"
    yield "from vlatrain.injection.mixed import load" if mixed else "from peft import PeftModel"
    if trunk:
        yield "from vlatrain.injection.trunk import load_trunk"
    yield f"from transformers import {kind}"
    yield ""
    if shipped:
        yield f'checkpoint = Path(vlatrain.__file__).parent / "assets" / {_quoted(Path(name).name)}'
    else:
        yield f"checkpoint = {_quoted(name)}"
    at = f", revision={_quoted(revision)}" if revision and not Path(name).is_dir() else ""
    yield f"backbone = {kind}.from_pretrained(checkpoint{at})"
    yield f"folder = snapshot_download({_quoted(remote)})" if files else f"folder = {_quoted(remote or folder)}"
    if trunk:
        yield "load_trunk(backbone, folder)"
    yield f"model = {'load' if mixed else 'PeftModel.from_pretrained'}(backbone, folder)"
    if config.adapter.by_task:
        first = next(iter(config.task.subtasks))
        yield ""
        yield f"# there is an adapter for each of {', '.join(config.task.subtasks)}: whose a call is, is said around it"
        yield "from vlatrain.injection.context import for_task"
        yield ""
        yield f"with for_task(model, {_quoted(first)}):"
        yield "    ..."


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _query(task: TaskConfig) -> str:
    """What a task is asked about an image, as the arguments behind it."""
    if task.spec.query == QUESTION:
        return f", question={_quoted(WHAT)}"
    return ', texts=["a red circle", "a blue square"]' if task.spec.query == TEXT else ""
