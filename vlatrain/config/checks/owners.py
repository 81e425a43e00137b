"""Who reads a key. What the user writes and the chosen verb, option or backbone does not read is refused with who does read it.

Data says it: `READ_BY` (which verbs read a key), the YAML file of each task, data source and logger (it sets every key that it
reads, as the file of a method does), `OPTIONS` of `vlatrain.config.families` (those of the backbones), and `CONDITIONS` (which
other values a key depends on). Only keys that the user wrote are asked about, not those of a finished run or of our own YAML files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatrain.config import joint, methods
from vlatrain.config.adapter import COMMON
from vlatrain.config.errors import Incompatible
from vlatrain.config.families import COMPOSITES, DUALS, FORMER, OPTIONS, TOLD, VISION_TOWERS
from vlatrain.config.folder import set_by, shipped
from vlatrain.config.keys import did_you_mean
from vlatrain.config.schema import AS_TRAIN, EvalConfig, PredictConfig, TrainConfig, readers
from vlatrain.config.spec import QUESTION
from vlatrain.config.wording import BY_TEXT

BY_FILE = ("task", "data", "logger")  # groups whose options each read what their YAML files set
_SUBTASK = re.compile(r"(task|data)\.subtasks\.([^.]+)\.(.+)")


@dataclass(frozen=True)
class Condition:
    """When keys are read.

    Attributes:
        keys: dotted keys, each with all below it.
        holds: whether they are read under a configuration.
        told: who does not read a key and who does, with `{key}` and, as `{c.task.name}`, values of the configuration.
    """

    keys: tuple[str, ...]
    holds: Callable[[TrainConfig], bool]
    told: str


def _scores(config: TrainConfig, split: str) -> bool:
    """Whether a split is read: by an evaluation only the one that it scores, and train to split it off."""
    if not isinstance(config, EvalConfig) or split == config.split:
        return True
    return split == "train" and config.split == "eval" and config.data.eval is None


def compares_features(config: TrainConfig) -> bool:
    """Whether a classification compares features of images and texts, and asks no question."""
    served = config.model.tasks.get(config.task.name)
    return bool(served and "image" in served.features) or config.model.family in DUALS


def _chooses(config: TrainConfig) -> bool:
    """Whether answers are chosen from a list by a classifier, and not written."""
    served = config.model.tasks.get(config.task.name)
    return bool(served and "classifier" in served.trained)


def _from_hub(config: TrainConfig, submodel: str = "") -> bool:
    """Whether weights, of one submodel of a composite if it is named, come from a hub: those are what has revisions."""
    model, served = config.model, config.model.tasks.get(config.task.name)
    name = model.checkpoint or (served.checkpoint if served else "")
    if submodel:
        name = model.submodels[submodel].checkpoint if submodel in model.submodels and not model.checkpoint else ""
    elif not name and model.family not in COMPOSITES:
        name = next((own.checkpoint for own in model.submodels.values()), "")
    return bool(name) and not model.random_init and not name.startswith("assets:") and not Path(name).is_dir()


def _matches(config: TrainConfig) -> bool:
    """Whether a retrieval can match pairs: by a head, or by adapters that read the other modality."""
    reads = any("other" in method.needs for method in methods.components(config.adapter).values())
    return config.model.family not in DUALS or reads


CONDITIONS = (
    Condition(
        ("task", "model", "data"),
        lambda c: c.adapter.name != methods.ROUTER or isinstance(c, (EvalConfig, PredictConfig)),
        "adapter=router takes no {key}, which its runs say; other methods do",
    ),
    Condition(
        ("adapter.sources",),
        lambda c: c.adapter.name == methods.ROUTER or not isinstance(c, (EvalConfig, PredictConfig)),
        "a finished run of adapter={c.adapter.name} takes no {key}, it has what it needs; one of adapter=router does",
    ),
    Condition(
        ("trainer.tf32",),
        lambda c: c.trainer.device != "cpu",
        "trainer.device=cpu takes no {key}; a GPU does",
    ),
    Condition(
        ("data.test", "data.test_annotations"),
        lambda c: _scores(c, "test"),
        "split=eval takes no {key}, it scores data.eval; split=test does",
    ),
    Condition(
        ("data.eval", "data.eval_annotations"),
        lambda c: _scores(c, "eval"),
        "split=test takes no {key}, it scores data.test; split=eval does",
    ),
    Condition(
        ("data.train", "data.annotations"),
        lambda c: _scores(c, "train"),
        "vlatrain eval takes no {key} but to split data.eval off it; vlatrain train does",
    ),
    Condition(
        ("data.train_size",),
        lambda c: not isinstance(c, EvalConfig) or c.data.streaming,
        "vlatrain eval takes no {key}; vlatrain train does",
    ),
    Condition(
        ("data.split", "data.columns.split"),
        lambda c: not c.data.streaming,
        "data.streaming=true takes no {key}, a stream is taken as it comes; data.streaming=false does",
    ),
    Condition(
        ("data.eval_fraction",),
        lambda c: c.data.eval is None,
        "data.eval={c.data.eval} takes no {key}, nothing is split off; data.eval=null does",
    ),
    Condition(
        ("data.eval_annotations",),
        lambda c: c.data.eval is not None,
        "data.eval=null takes no {key}, data.annotations are those of what is split off; data.eval=FILE does",
    ),
    Condition(
        ("data.test_annotations",),
        lambda c: c.data.test is not None,
        "data.test=null takes no {key}; data.test=FILE does",
    ),
    Condition(
        ("data.text_only",),
        lambda c: "conversations" in c.task.spec.fields,
        "task={c.task.name} takes no {key}; tasks with conversations do (instruct)",
    ),
    Condition(
        ("data.max_images",),
        lambda c: c.task.spec.several_images,
        "task={c.task.name} takes no {key}, a sample of it has one image; vqa, captioning and instruct do",
    ),
    Condition(
        ("data.columns.options",),
        lambda c: c.task.wording.chooses or "{options}" in c.task.wording.template,
        "task.answers={c.task.answers} takes no {key}; task.answers=options and letter do, and task.prompt with {{options}} in it",
    ),
    Condition(
        ("data.pairs",),
        lambda c: c.task.spec.several_images and c.task.spec.query == QUESTION,
        "task={c.task.name} takes no {key}, there are no built-in samples of it about two pictures; task=vqa has some",
    ),
    Condition(
        ("data.shots", "data.balance", "data.stratify"),
        lambda c: "label" in c.task.spec.fields,
        "task={c.task.name} takes no {key}, its samples have no classes; task=classification does (data.train_size=N caps any)",
    ),
    Condition(
        ("data.crop", "data.flip", "data.views"),
        lambda c: "mask" not in c.task.spec.fields,
        "task={c.task.name} takes no {key}, the masks would not be cropped and flipped with the images; other tasks do",
    ),
    Condition(
        ("data.boxes", "data.columns.boxes"),
        lambda c: "boxes" in c.task.spec.fields,
        "task={c.task.name} takes no {key}, it finds no boxes; task=grounding does",
    ),
    Condition(
        ("model.box_words",),
        lambda c: bool(c.task.subtasks or ("boxes" in c.task.spec.fields and c.task.spec.served_as)),
        "task={c.task.name} takes no {key}, it writes no boxes; task=grounding_words does",
    ),
    Condition(
        ("data.views",),
        lambda c: c.data.crop < 1 or c.data.flip > 0,
        "images as they are take no {key}; data.crop=0.5 and data.flip=0.5 do",
    ),
    Condition(
        ("task.answer_list",),
        lambda c: c.task.answers == "rank" or _chooses(c),
        "task.answers={c.task.answers} takes no {key}; task.answers=rank does",
    ),
    Condition(
        ("task.answers",),
        lambda c: not _chooses(c) or c.task.answers == BY_TEXT,
        "model={c.model.name} takes no {key}, it chooses from task.answer_list, or by task.answers=options among a question's; "
        "backbones that write do",
    ),
    Condition(
        ("task.decode",),
        lambda c: not _chooses(c),
        "model={c.model.name} takes no {key}, it chooses from task.answer_list; backbones that write do",
    ),
    Condition(
        ("task.decode",),
        lambda c: c.task.answers == "generate",
        "task.answers={c.task.answers} takes no {key}; task.answers=generate does",
    ),
    Condition(
        ("task.negatives",),
        lambda c: c.model.family == "vilt",
        "model={c.model.name} takes no {key}; backbones that only match do (vilt)",
    ),
    Condition(
        ("task.temperature", "task.matching", "task.rerank", "task.negatives_per_step"),
        lambda c: c.model.family != "vilt",
        "model={c.model.name} takes no {key}, it scores every pair; backbones with features do",
    ),
    Condition(
        ("task.rerank",),
        _matches,
        "model={c.model.name} with adapter={c.adapter.name} takes no {key}, it matches no pairs; adapters that "
        "read the other modality do, and model=blip does",
    ),
    Condition(
        ("task.templates", "task.temperature"),
        lambda c: "label" not in c.task.spec.fields or compares_features(c) or c.model.family in VISION_TOWERS,
        "model={c.model.name} takes no {key}, it answers task.question; backbones that compare features do (clip)",
    ),
    Condition(
        ("task.templates", "task.temperature", "task.question", "task.max_length", "task.base_to_new"),
        lambda c: c.model.family not in VISION_TOWERS,
        "model={c.model.name} takes no {key}, it reads no texts, and its head knows the classes that it has learned; "
        "backbones that compare features of images and texts do (clip)",
    ),
    Condition(
        ("task.question",),
        lambda c: not compares_features(c),
        "model={c.model.name} takes no {key}, it compares task.templates; backbones that write do (tiny_composite)",
    ),
    Condition(
        ("model.prompts",),
        lambda c: c.model.family in TOLD,
        "model={c.model.name} takes no {key}; models that continue a prompt do (tiny_composite, llava)",
    ),
    Condition(
        ("model.submodels",),
        lambda c: c.model.family in (*COMPOSITES, *VISION_TOWERS),
        "model={c.model.name} takes no {key}; model=composite does",
    ),
    Condition(
        ("data.revision",),
        lambda c: not Path(c.data.path or "").expanduser().is_dir(),
        "data.path={c.data.path} takes no {key}, it is a folder; a data set of the hub does",
    ),
    Condition(
        ("model.revision",),
        _from_hub,
        "model={c.model.name} takes no {key}, its weights are in no repository of one; a model.checkpoint of the hub does",
    ),
    *(
        Condition(
            (f"model.submodels.{name}.revision",),
            lambda c, name=name: _from_hub(c, name),  # type: ignore[misc]
            f"model.submodels.{name}.checkpoint takes no {{key}}, it is no repository of the hub; one of the hub does",
        )
        for name in ("vision", "language")
    ),
    Condition(
        ("task.sampling_temperature",),
        lambda c: c.task.sampling == "temperature",
        "task.sampling={c.task.sampling} takes no {key}; task.sampling=temperature does",
    ),
    Condition(
        tuple(f"adapter.{key}" for key in (*COMMON, "options", "overrides", "share")),
        lambda c: c.adapter.name not in methods.BARE,
        "adapter={c.adapter.name} takes no {key}; methods with modules of their own do",
    ),
)


def unread(config: TrainConfig, verb: str, written: Iterable[tuple[str, str]]) -> Iterator[Incompatible]:
    """The written keys that nothing reads, each with who does. A sweep leaves such a job out.

    Args:
        config: the typed configuration.
        verb: the verb.
        written: dotted keys, each with the file it was written in; empty: on the command line.
    """
    verb = "train" if verb in AS_TRAIN else verb
    subtasks = joint.subtasks(config) if config.task.name == joint.JOINT and not joint.problems(config) else {}
    for key, file in written:
        found = _SUBTASK.fullmatch(key)
        if found and found[2] in subtasks:
            told = _refused(f"{found[1]}.{found[3]}", subtasks[found[2]], verb, file)
            told = told and f"subtask {found[2]}: {told}"
        elif subtasks and key.startswith("data."):  # what is said of all data is read if one of the subtasks reads it
            each = [_refused(key, subtask, verb, file) for subtask in subtasks.values()]
            told = "" if "" in each else each[0]
        else:
            told = _refused(key, config, verb, file)
        if told:
            yield Incompatible(f"{file}: {told}" if file else told)


def _refused(key: str, config: TrainConfig, verb: str, file: str) -> str:
    """Who does not read a key, and who does; empty if it is read. A file may serve several verbs and values."""
    if _within(key, "task.spec") and not file:
        name = config.task.name
        return f"{key}: says what task={name} is, and is no option; a task of your own says its own (vlatrain/tasks/README.md)"
    if file:
        return _of_option(key, config, verb)
    if verb not in (verbs := readers(key)):
        return takes_no(f"vlatrain {verb}", key, [f"vlatrain {other}" for other in verbs])
    unmet = (c.told for c in CONDITIONS if any(_within(key, known) for known in c.keys) and not c.holds(config))
    return _of_option(key, config, verb) or next(unmet, "").format(key=key, c=config)


def _of_option(key: str, config: TrainConfig, verb: str) -> str:
    """The same, as far as the chosen task, data source, logger and family of backbones tell."""
    group, _, rest = key.partition(".")
    if rest and group in BY_FILE and not (group == "data" and verb == "predict"):  # predict reads samples of its own
        option = getattr(config, group).name
        able = [name for name in shipped(group) if _sets(group, name, rest)]
        if (
            able and option in shipped(group) and option not in able
        ):  # a task of the user's own says what it reads by its code
            return takes_no(f"{group}={option}", key, [f"{group}={name}" for name in able])
    if key.startswith("model.options."):
        name, own = rest.split(".")[1], OPTIONS.get(config.model.family)
        if own is not None and name not in own:
            able = [f"family={family}" for family, names in OPTIONS.items() if name in names and family not in FORMER]
            known = f", only {', '.join(own)}" if own and not able else ""
            title = f"model={config.model.name} (family={config.model.family})"
            return takes_no(title, key + known, able) + did_you_mean(name, own)
    return ""


def takes_no(who: str, key: str, others: list[str]) -> str:
    """`data=shapes takes no data.train; data=files and data=hub do`."""
    *most, last = others or [""]
    does = f"{', '.join(most)} and {last} do" if most else f"{last} does"
    return f"{who} takes no {key}" + (f"; {does}" if others else "")


def _within(key: str, known: str) -> bool:
    return key == known or key.startswith(f"{known}.")


def _sets(group: str, option: str, key: str) -> bool:
    """Whether the YAML file of an option sets a key. Subtasks are of a joint task alone, which is told elsewhere."""
    values: Any = {**set_by(group, option), "subtasks": None}
    for name in key.split("."):
        if not isinstance(values, Mapping):
            return True
        if name not in values:
            return False
        values = values[name]
    return True
