"""Tasks, one file each: how a batch becomes a loss, predictions and metrics."""

from collections.abc import Callable, Sequence

from vlatrain.backbones.base import Answerer, Backbone, Classifier, Matcher
from vlatrain.config import TaskConfig, UserError
from vlatrain.config.joint import JOINT, tasks
from vlatrain.data.lazy import of_subtask
from vlatrain.data.sample import Sample
from vlatrain.tasks.base import Batch, Batches, Evaluation, Task
from vlatrain.tasks.captioning import Captioning
from vlatrain.tasks.class_head import ByHead, resolve_classes
from vlatrain.tasks.classification import classification_on
from vlatrain.tasks.grounding import Grounding
from vlatrain.tasks.grounding_words import GroundingWords
from vlatrain.tasks.instruct import Instruct
from vlatrain.tasks.joint import Joint
from vlatrain.tasks.retrieval import Retrieval
from vlatrain.tasks.retrieval_matching import Matching
from vlatrain.tasks.segmentation import Segmentation
from vlatrain.tasks.vqa import Vqa
from vlatrain.tasks.vqa_choice import Choosing, ChoosingClasses
from vlatrain.tasks.vqa_classifier import Answering, resolve_answers


def _joint(config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> Joint:
    subtasks = {name: build(subtask, backbone, of_subtask(train, name)) for name, subtask in tasks(config).items()}
    return Joint(config, backbone, subtasks)


def _vqa(config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> Vqa:
    by_class, by_text = (ChoosingClasses, Choosing) if config.wording.chooses else (Answering, Vqa)
    return (by_class if isinstance(backbone, Answerer) else by_text)(config, backbone, train)


def _classification(config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> Task:
    return (ByHead if isinstance(backbone, Classifier) else classification_on)(config, backbone, train)


def _retrieval(config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> Retrieval:
    return (Matching if isinstance(backbone, Matcher) else Retrieval)(config, backbone, train)


TASKS: dict[str, Callable[[TaskConfig, Backbone, Sequence[Sample]], Task]] = {
    "vqa": _vqa,
    "captioning": Captioning,
    "retrieval": _retrieval,
    "classification": _classification,
    "instruct": Instruct,
    "segmentation": Segmentation,
    "grounding": Grounding,
    "grounding_words": GroundingWords,
    JOINT: _joint,
}


def register(name: str, task: Callable[[TaskConfig, Backbone, Sequence[Sample]], Task]) -> None:
    """Make a task of one's own known: `task=NAME`, with a NAME.yaml in the `task` group of a `--config-dir`.

    Args:
        name: what a configuration calls it.
        task: its class, or what makes it from settings, backbone and training samples.

    Raises:
        ValueError: the name is taken by another task.
    """
    if TASKS.setdefault(name, task) is not task:
        raise ValueError(f"there is a task {name!r} already: {TASKS[name].__qualname__}")


def check_known(config: TaskConfig) -> None:
    """Refuse a task, or one of its subtasks, that no code is registered for.

    Raises:
        UserError: with each.
    """
    names = dict.fromkeys([config.name, *(subtask.name for subtask in tasks(config).values())])
    if unknown := [name for name in names if name not in TASKS]:
        raise UserError(
            f"task.name={name} is unknown; there are {', '.join(TASKS)} (one of your own: vlatrain/tasks/README.md)"
            for name in unknown
        )


def prepare(config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> TaskConfig:
    """Make a backbone fit for a task, before any method is put into it: give it the answers, or classes, that it is to choose from.

    Args:
        config: the task's settings.
        backbone: the backbone.
        train: the training samples; none for a finished run.

    Returns:
        The settings with what was found out: the answers, or classes.
    """
    if isinstance(backbone, Classifier):
        return resolve_classes(config, backbone, train)
    if isinstance(backbone, Answerer) and "answers" in config.spec.fields:
        return resolve_answers(config, backbone, train)
    return config


def build(config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> Task:
    """The task of a configuration on a backbone. Its own `config` has what the settings leave open: answers and classes.

    Args:
        config: its settings.
        backbone: the backbone.
        train: the training samples, for what a task derives from them.

    Raises:
        UserError: an unknown task.
    """
    check_known(config)
    return TASKS[config.name](config, backbone, train)


def subtasks_of(task: Task) -> dict[str, Task]:
    """The tasks of a joint task by the names of its subtasks. Any other task is under an empty name."""
    return task.subtasks if isinstance(task, Joint) else {"": task}


__all__ = [
    "TASKS", "Batch", "Batches", "Evaluation", "Task", "build", "check_known", "prepare", "register",
    "subtasks_of",
]  # fmt: skip
