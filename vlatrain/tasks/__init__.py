"""Tasks, one file each: how a batch becomes a loss, predictions and metrics."""

from collections.abc import Callable, Sequence

from vlatrain.backbones.base import Backbone
from vlatrain.config import TaskConfig, UserError
from vlatrain.data.sample import Sample
from vlatrain.tasks.base import Batch, Batches, Evaluation, Task
from vlatrain.tasks.captioning import Captioning
from vlatrain.tasks.retrieval import Retrieval
from vlatrain.tasks.vqa import Vqa

TASKS: dict[str, Callable[[TaskConfig, Backbone, Sequence[Sample]], Task]] = {
    "vqa": Vqa,
    "captioning": Captioning,
    "retrieval": Retrieval,
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
