"""Tasks, one file each: how a batch becomes a loss, predictions and metrics."""

from collections.abc import Callable, Sequence

from vlatrain.backbones.base import Backbone
from vlatrain.config import TaskConfig, UserError
from vlatrain.config.joint import JOINT, tasks
from vlatrain.data.sample import Sample
from vlatrain.tasks.base import Batch, Batches, Evaluation, Task
from vlatrain.tasks.captioning import Captioning
from vlatrain.tasks.classification import classification
from vlatrain.tasks.instruct import Instruct
from vlatrain.tasks.joint import Joint
from vlatrain.tasks.retrieval import Retrieval
from vlatrain.tasks.vqa import Vqa


def _joint(config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> Joint:
    parts = {
        name: build(part, backbone, [sample for sample in train if sample.part == name])
        for name, part in tasks(config).items()
    }
    return Joint(config, backbone, parts)


TASKS: dict[str, Callable[[TaskConfig, Backbone, Sequence[Sample]], Task]] = {
    "vqa": Vqa,
    "captioning": Captioning,
    "retrieval": Retrieval,
    "classification": classification,
    "instruct": Instruct,
    JOINT: _joint,
}


def build(config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> Task:
    """The task of a configuration on a backbone.

    Args:
        config: its settings.
        backbone: the backbone.
        train: the training samples, for what a task derives from them.

    Raises:
        UserError: an unknown task.
    """
    if config.name not in TASKS:
        raise UserError(f"task.name={config.name} is unknown; there are {', '.join(TASKS)}")
    return TASKS[config.name](config, backbone, train)


__all__ = ["TASKS", "Batch", "Batches", "Evaluation", "Task", "build"]
