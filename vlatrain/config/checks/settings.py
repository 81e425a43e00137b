"""Values that have the right type and yet make no sense. Every problem is reported, each with what would be right."""

from __future__ import annotations

import importlib.util
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlatrain.config import hub, joint, limits, methods, spec, wording
from vlatrain.config.checks import data_files, queries
from vlatrain.config.checks.serving import serving
from vlatrain.config.errors import Incompatible, UserError
from vlatrain.config.keys import did_you_mean
from vlatrain.config.logger import EXTRAS
from vlatrain.config.optim import PARAMETER_GROUPS
from vlatrain.config.schema import EvalConfig, ExportConfig, MergeConfig, PredictConfig, TrainConfig
from vlatrain.config.sweep import FIGURES
from vlatrain.config.task import TaskConfig


def problems(config: TrainConfig, folders: Sequence[Path] = (), job: bool = False) -> list[str]:
    """Everything wrong with a configuration of the right types, one message each; empty if it is sound.

    Args:
        config: the configuration.
        folders: the user's own folders of YAML files, whose backbones a message may name.
        job: whether it is one of a sweep, which knows its folder.
    """
    if isinstance(config, MergeConfig):
        return [*_values(config), *_model(config, folders), *_merge(config)]
    if isinstance(config, ExportConfig):
        return [*_values(config), *_model(config, folders), *_export(config)]
    found = [*_values(config), *methods.problems(config.adapter), *_model(config, folders)]
    found += [*_rates(config), *_run(config, job), *_logger(config), *_passes(config), *_shared(config)]
    if wrong := joint.problems(config):
        return [*found, *wrong]
    found += _sweep(config)
    if config.task.name == joint.JOINT:
        found += _subtasks(config, found)
    if isinstance(config, PredictConfig):
        return [*found, *_prediction(config)]
    return found if config.task.name == joint.JOINT else [*found, *_data(config)]


def _values(config: TrainConfig) -> Iterable[str]:
    yield from limits.problems(config)
    decode = config.task.decode
    if isinstance(decode.max_new_tokens, int) and decode.min_new_tokens > decode.max_new_tokens >= 1:
        yield f"task.decode.min_new_tokens={decode.min_new_tokens}: is more than max_new_tokens={decode.max_new_tokens}"
    if config.trainer.eval_share is not None and config.trainer.eval_every:
        share, every = config.trainer.eval_share, config.trainer.eval_every
        yield f"trainer.eval_share={share} and trainer.eval_every={every}: set one of the two, the other to null or 0"
    yield from _classes(config.task)
    yield from _task(config.task)


def _sweep(config: TrainConfig) -> Iterable[str]:
    known = tuple(joint.scores(config.task)) + tuple(FIGURES)
    for name in config.sweep.objectives:
        if name not in known:
            yield f"sweep.objectives: {name}: must be one of {', '.join(known)}{did_you_mean(name, known)}"


def _classes(config: TaskConfig) -> Iterable[str]:
    if len(config.classes) == 1:
        yield f"task.classes={config.classes}: a choice needs two classes or more; empty takes those of the training data"
    if twice := [name for name, count in Counter(config.classes).items() if count > 1]:
        yield f"task.classes: {', '.join(twice)}: named more than once"
    if "" in config.classes:
        yield "task.classes: a class without a name"
    if not config.templates:
        yield "task.templates=[]: a class is compared by at least one text, such as 'a photo of a {}.'"
    for template in config.templates:
        if template.count("{}") != 1:
            yield f"task.templates: {template!r}: the class's name goes where {{}} stands, once"


def _task(config: TaskConfig) -> Iterable[str]:
    """What is wrong with a task's name, its description, and the metric that chooses the best checkpoint."""
    if config.name not in (shipped := spec.shipped_tasks()) and config.spec == spec.TaskSpec():
        yield f"task.name={config.name}: must be one of {', '.join(shipped)}{did_you_mean(config.name, shipped)}"
        return
    yield from spec.problems(config.name, config.spec)
    yield from wording.problems(config.wording.template, config.wording.answers)
    if joint.task_problems(config):
        return
    metric, scores = config.metric, joint.scores(config)
    known = tuple(name for name, score in scores.items() if score.higher_is_better)
    if metric not in known:
        yield f"task.metric={metric}: must be one of {', '.join(known)}{did_you_mean(metric, known)}"
        return
    subtask = metric.rpartition("/")[0]
    owner, key = (joint.tasks(config)[subtask], f"task.subtasks.{subtask}") if subtask else (config, "task")
    if (option := scores[metric].requires) and not getattr(owner, option, False):
        yield f"task.metric={metric}: needs {key}.{option}=true"


def _model(config: TrainConfig, folders: Sequence[Path]) -> Iterable[str]:
    model = config.model
    if not model.tasks:
        yield f"model={model.name}: its description names no task that it serves"
    elif config.task.spec != spec.TaskSpec() and config.task.name not in model.tasks and not _is_router(config):
        served_as = config.task.spec.served_as or config.task.name
        others = f"; {served_as}: {', '.join(able)}" if (able := serving(served_as, folders)) else ""
        yield Incompatible(
            f"task={config.task.name}: model={model.name} cannot do it; it can do {', '.join(model.tasks)}{others}"
        )
    for task, served in model.tasks.items():
        for tower in served.towers:
            if tower not in model.towers:
                yield f"model.tasks.{task}.towers: no tower {tower}; there are {', '.join(model.towers)}"
    if model.quantize and importlib.util.find_spec("bitsandbytes") is None:
        yield f"model.quantize={model.quantize}: needs a package; pip install 'vlatrain[quantize]'"
    if model.quantize and config.adapter.name == "full":
        yield Incompatible(
            f"model.quantize={model.quantize}: quantised weights cannot train, and adapter=full trains them"
        )
    checkpoint = model.checkpoint or ""
    if checkpoint.startswith((".", "/", "~")) and not Path(checkpoint).expanduser().exists():
        yield f"model.checkpoint={checkpoint}: no such folder"
    if config.adapter.points is not None and not config.adapter.points:
        yield "adapter.points=[]: selects nothing; adapter=none trains nothing, null takes the task's points"


def _subtasks(config: TrainConfig, reported: list[str]) -> Iterable[str]:
    """What is wrong with the subtasks of a joint run, each taken as a run of its own, beyond what has been told of the whole."""
    served = config.model.tasks.get(joint.JOINT)
    found: dict[str, list[str]] = {}
    for name, subtask in joint.subtasks(config).items():
        if (
            served
            and not _is_router(config)
            and (subtask.task.spec.served_as or subtask.task.name) not in served.subtasks
        ):
            yield (
                f"task.subtasks.{name}: model={config.model.name} cannot do {subtask.task.name} as a subtask: its "
                f"{served.architecture}, which serves them all, is made for {', '.join(served.subtasks)}"
            )
        elif subtask.task.spec.served_as and subtask.task.name in config.model.prompts:
            yield (
                f"task.subtasks.{name}: model={config.model.name} is asked for {subtask.task.name} in words of its own "
                f"(model.prompts.{subtask.task.name}), and task=joint asks all its subtasks alike: make it a run of its own"
            )
        data = [] if isinstance(subtask, PredictConfig) else _data(subtask)
        for problem in [*_values(subtask), *data]:
            if problem not in reported:
                found.setdefault(problem, []).append(name)
    for problem, names in found.items():
        yield f"subtask {', '.join(names)}: {problem}"


def _passes(config: TrainConfig) -> Iterable[str]:
    """A training finds out what fits; whoever takes up a run has its numbers."""
    for key in ("batch_size", "accumulate"):
        if isinstance(config, (EvalConfig, PredictConfig)) and getattr(config.trainer, key) == "auto":
            yield f"trainer.{key}=auto: only a training chooses it; set a number"


def _shared(config: TrainConfig) -> Iterable[str]:
    """What does not go with weights that processes hold together."""
    if not config.trainer.shard:
        return
    if config.model.quantize:
        yield f"trainer.shard=true and model.quantize={config.model.quantize}: packed weights are not cut; choose one of the two"
    if config.trainer.device == "mps":
        yield "trainer.shard=true and trainer.device=mps: its processes exchange nothing; use cuda or cpu"
    if isinstance(config, (EvalConfig, PredictConfig)):
        return
    if config.adapter.name == "full" and config.adapter.points is None:
        yield "trainer.shard=true and adapter=full: what trains is whole in each process, so nothing is cut; choose an adapter"
    if config.trainer.compile:
        yield "trainer.shard=true and trainer.compile=true: weights that come and go are not compiled; choose one of the two"


def _rates(config: TrainConfig) -> Iterable[str]:
    for group, rate in config.optim.groups.items():
        key = f"optim.groups.{group}"
        if group not in PARAMETER_GROUPS:
            yield f"{key}: must be one of {', '.join(PARAMETER_GROUPS)}{did_you_mean(str(group), PARAMETER_GROUPS)}"
        yield from limits.POSITIVE.problems(key, rate)


def _run(config: TrainConfig, job: bool) -> Iterable[str]:
    name, named = config.run.name, bool(config.run.name or config.run.dir or job)
    if name is not None and (not name or name in (".", "..") or any(mark in name for mark in "/\\\0")):
        yield f"run.name={name}: must be a plain folder name; run.dir=FOLDER takes a path"
    if config.resume == "auto" and not named and not isinstance(config, (EvalConfig, PredictConfig)):
        yield "resume=auto: say which run with run.name=NAME or run.dir=FOLDER"
    if isinstance(config, (EvalConfig, PredictConfig)) and not config.source:
        yield "run=FOLDER is missing: the folder of a finished run"


def _logger(config: TrainConfig) -> Iterable[str]:
    if isinstance(config, EvalConfig):  # it is the run's, whose scores count without it
        return
    for package in config.logger.trackers:
        if importlib.util.find_spec(package) is None:
            install = f"'vlatrain[{package}]'" if package in EXTRAS else package
            yield f"logger={package}: needs a package; pip install {install}"


def _data(config: TrainConfig) -> Iterable[str]:
    data = config.data
    evaluates = isinstance(config, EvalConfig)
    if data.name == "shapes" and not config.task.spec.builtin:
        yield f"data=shapes: has nothing for task={config.task.name}; data=files and data=hub take your own"
    if data.name == "hub" and not data.path:
        yield "data=hub: data.path=NAME or data.path=FOLDER is missing"
    if data.name == "files" and not data.train and not evaluates:
        yield "data=files: data.train=FILE is missing"
    if data.streaming and (data.train_size is None or data.eval_size is None):
        yield "data.streaming=true: needs data.train_size and data.eval_size, as a stream does not tell its length"
    wanted = {config.split: getattr(data, config.split, None)} if isinstance(config, EvalConfig) else {}
    if isinstance(config, EvalConfig) and config.split == "test" and data.name != "shapes" and not data.test:
        yield "split=test: the run has no test data; say which with data.test="
    if not evaluates:
        wanted = {"train": data.train, "eval": data.eval, "test": data.test}
    if data.name == "files":
        yield from data_files.problems(data, tuple(split for split, file in wanted.items() if file))
        if data.root and not Path(data.root).expanduser().is_dir():
            yield f"data.root={data.root}: no such folder"


def _is_router(config: TrainConfig) -> bool:
    """Whether subtasks are finished runs, each of which the backbone serves by itself."""
    return config.adapter.name == methods.ROUTER


def _prediction(config: PredictConfig) -> Iterable[str]:
    if _is_router(config):
        yield from queries.of_router(config)
        return
    try:
        task = joint.subtasks(config)[joint.asked(config)].task
    except UserError as error:
        yield from error.problems
        return
    yield from queries.problems(config, task)


def _merge(config: MergeConfig) -> Iterable[str]:
    number = len(config.sources)
    yield from _new_folder("output", config.output)
    if config.keep is not None and number > 1:
        yield f"keep={config.keep}: prunes one run, a fusion, not {number}"
    if config.weights and config.keep is not None:
        yield "weights=: only the adapters of runs are weighted, not with keep="
    elif config.weights and len(config.weights) != number:
        yield f"weights: {len(config.weights)} of them for {number} sources"
    elif not config.weights and number < 2 and config.keep is None:
        yield (
            "sources: a single run needs weights=[FACTOR] or keep=NUMBER (of a fusion); vlatrain export form=merged puts one into "
            "the model's weights"
        )
    if not all(math.isfinite(weight) for weight in config.weights):
        yield f"weights={config.weights}: must be finite"


def _export(config: ExportConfig) -> Iterable[str]:
    if config.to.startswith(hub.RUN):
        if not re.fullmatch(hub.RUN + hub.NAME, config.to):
            yield f"to={config.to}: a repository of the hub is hub:OWNER/NAME"
        return
    if config.private:
        yield "private=true: a folder has no owner; to=hub:OWNER/NAME has"
    yield from _new_folder("to", config.to)


def _new_folder(key: str, name: str) -> Iterable[str]:
    folder = Path(name).expanduser()
    if not name:
        yield f"{key}=FOLDER is missing: where the result goes"
    elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        yield f"{key}={name}: there is something already; choose another folder"
