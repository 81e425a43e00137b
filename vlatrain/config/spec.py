"""What a task is, as data: `spec` in `conf/task/NAME.yaml`, and of a task of one's own in a NAME.yaml in a `--config-dir`.

Data, configuration, reporting and prediction read it; the code in `vlatrain/tasks/` does the rest. It is no option: a run with
other values is a run of another task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, cast

from omegaconf import OmegaConf

from vlatrain.config.data import ColumnsConfig
from vlatrain.config.folder import set_by, shipped
from vlatrain.config.keys import did_you_mean

IMAGE, QUESTION, TEXT = "image", "question", "text"  # how a task is asked
QUERIES = (IMAGE, QUESTION, TEXT)
# The keys of `model.prompts`: what a model that continues text is told about an image alone, with a question, in a conversation.
TOLD_IMAGE, TOLD_QUESTION, TOLD_TURNS = "captioning", "vqa", "instruct"
PROMPTS = (TOLD_IMAGE, TOLD_QUESTION, TOLD_TURNS)


@dataclass
class MetricSpec:
    """A score of a task.

    Attributes:
        name: its name in `metrics.json`.
        unit: its unit; empty: a plain number.
        higher_is_better: whether more is better; only such a score can choose the best checkpoint.
        requires: the option of the task that must be true for it to be computed; empty: none.
    """

    name: str = "???"
    unit: str = "%"
    higher_is_better: bool = True
    requires: str = ""


@dataclass
class SmallestSpec:
    """The fewest samples with which splits mean anything.

    Attributes:
        splits: some of train, eval and test.
        samples: how many samples.
        reason: why, for the message.
    """

    splits: list[str] = field(default_factory=list)
    samples: int = 1
    reason: str = ""


@dataclass
class TaskSpec:
    """What a task is.

    Attributes:
        fields: what training and evaluation need of a sample beside its image: question, answers, captions, label, mask or
            conversations.
        optional: what is read beside where it is there: weights, options.
        given: which of the fields a prediction needs; the others are what it finds.
        several_images: whether a sample may have several images.
        by_image: whether rows with the same image are one sample; else each row is one.
        smallest: the sizes below which a split is refused.
        metrics: all its scores. `task.metric`, in the same file, names the headline one, which chooses the best checkpoint.
        query: how it is asked about images: `image` (nothing more), `question`, or `text` (texts are matched with images).
        alternatives: whether it knows several answers to a query, each with its probability.
        example: what stands behind `vlatrain predict run=FOLDER` in an example.
        pipeline: what the hub calls such a task (`pipeline_tag` of a model card); empty: it has no word for it.
        prompt: which of `model.prompts` a model that continues text is told.
        builtin: which of the sets of `data=shapes` serves it; empty: none.
        served_as: the shipped task as which a backbone serves it, with the same class, checkpoint and points; empty: by its own
            name, which the `tasks` of `conf/model/NAME.yaml` must have.
    """

    fields: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    several_images: bool = False
    by_image: bool = False
    smallest: list[SmallestSpec] = field(default_factory=list)
    metrics: list[MetricSpec] = field(default_factory=list)
    query: str = IMAGE
    alternatives: bool = False
    example: str = "image=PHOTO.jpg"
    pipeline: str = ""
    prompt: str = TOLD_QUESTION
    builtin: str = ""
    served_as: str = ""


def shipped_tasks() -> tuple[str, ...]:
    """The names of the tasks that vlatrain comes with."""
    return shipped("task")


def described(name: str) -> Mapping[str, Any]:
    """What the YAML file of a shipped task sets, as plain values; nothing for any other name."""
    return set_by("task", name)


def typed_spec(values: Mapping[str, Any]) -> TaskSpec:
    """A description from plain values; what they do not say is as by default."""
    return cast(TaskSpec, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TaskSpec), values)))


@cache
def shipped_spec(name: str) -> TaskSpec:
    """The description of a shipped task; of any other one that says nothing."""
    return typed_spec(described(name).get("spec", {}))


def with_shipped_specs(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's values in a run's configuration, with the description that goes with the code of today: one written before has none,
    or an older one. A task that is not shipped keeps its own."""
    name = str(task.get("name", ""))
    spec = asdict(shipped_spec(name)) if name in shipped_tasks() else task.get("spec", {})
    known = {
        subtask: with_shipped_specs({"name": subtask, **values}) if isinstance(values, Mapping) else values
        for subtask, values in (task.get("subtasks") or {}).items()
    }
    return {**task, "spec": spec, **({"subtasks": known} if known else {})}


def problems(name: str, spec: TaskSpec) -> Iterator[str]:
    """What is wrong with the description of a task."""
    key = f"task={name}: its YAML file: spec"
    if spec == TaskSpec():
        yield f"{key} is missing: it says what the task is, see vlatrain/tasks/README.md"
        return
    if name in shipped_tasks():
        if spec != shipped_spec(name):
            yield f"task.name={name}: its spec is another one: task={name} chooses all of it, one of your own takes another name"
        return
    known = tuple(
        column.name for column in fields(ColumnsConfig) if column.name not in ("id", "image", "split", "options")
    )
    for what in ("fields", "optional", "given"):
        for name in getattr(spec, what):
            if name not in known:
                yield f"{key}.{what}: {name}: must be one of {', '.join(known)}{did_you_mean(name, known)}"
    if beyond := [name for name in spec.given if name not in spec.fields]:
        yield f"{key}.given: {', '.join(beyond)}: must be among its fields"
    if not spec.metrics:
        yield f"{key}.metrics=[]: a task has at least one score"
    for what, value, choices in (("query", spec.query, QUERIES), ("prompt", spec.prompt, PROMPTS)):
        if value not in choices:
            yield f"{key}.{what}={value}: must be one of {', '.join(choices)}{did_you_mean(value, choices)}"
