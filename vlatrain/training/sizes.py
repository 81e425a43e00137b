"""Whether the sizes of a backbone fit each other: a pass on shapes alone, before anything is read or drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from vlatrain.backbones.describe import ASSETS, checkpoints_of
from vlatrain.backbones.loading import family_of, meta_model
from vlatrain.config import ModelConfig, TrainConfig, UserError
from vlatrain.tasks import build, prepare, subtasks_of
from vlatrain.tasks.base import TYPICAL
from vlatrain.training.costs import on_meta_device, on_shapes

UNFIT = (RuntimeError, ValueError, IndexError, KeyError, AssertionError, ZeroDivisionError, StrictDataclassError)
"""What torch and transformers raise where settings do not fit each other."""
FEW = 2  # tokens of each text: no model has fewer positions

Call = tuple[nn.Module, tuple[Any, ...]]


def sizes_are_chosen(model: ModelConfig, task: str) -> bool:
    """Whether somebody has chosen the sizes of a backbone: those of random weights, or of a checkpoint in a folder that is not
    shipped."""
    places = [Path(name) for name in checkpoints_of(model, task).values()]
    return model.random_init or any(place.is_dir() and not place.is_relative_to(ASSETS) for place in places)


def refuse_unfit(config: TrainConfig) -> None:
    """Refuse a backbone whose settings do not fit each other.

    Raises:
        UserError: what does not fit, and where.
    """
    inside: list[Call] = []
    model: nn.Module | None = None
    try:
        model = without_weights(config)
        with _noting(inside), on_meta_device(gradients=False):
            task = build(config.task, on_shapes(config, model))
            for own in subtasks_of(task).values():
                own.lengths = {**dict.fromkeys(TYPICAL, FEW), "texts": 1}
            task.loss_on_meta(2, "meta")
            task.evaluate_on_meta(2, "meta")
    except UserError:
        raise
    except NotImplementedError:  # it looks at values: no more can be told
        return
    except UNFIT as error:
        raise UserError(_described(config.model, model, inside, error)) from error


def without_weights(config: TrainConfig) -> nn.Module:
    """The frozen backbone on the meta device, with a row for each answer or class that is known."""
    model = meta_model(config.model, config.task.name).requires_grad_(False)
    if config.task.answer_list or config.task.classes:
        prepare(config.task, family_of(config.model)(config.model, config.task.name, model, None, ""))
    return model


@contextmanager
def _noting(inside: list[Call]) -> Iterator[None]:
    """Keep in a list which modules are being computed, the innermost last, each with what it is given."""
    begun = register_module_forward_pre_hook(lambda module, given: inside.append((module, given)))
    done = register_module_forward_hook(lambda module, given, result: inside.pop() and None)
    try:
        yield
    finally:
        begun.remove()
        done.remove()


def _described(model: ModelConfig, built: nn.Module | None, inside: list[Call], error: Exception) -> str:
    """What does not fit, in one line."""
    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    what = f"there is no {cause}" if isinstance(cause, KeyError) else " ".join(str(cause).split())[:200].rstrip(".")
    if built is not None and inside:
        module, given = inside[-1]
        name = next((name for name, one in built.named_modules() if one is module), type(module).__name__)
        if isinstance(module, nn.Linear) and given and isinstance(given[0], torch.Tensor):
            what = f"takes {module.in_features} values, and is given {given[0].shape[-1]}"
        what = f"{name}: {what}"
    return (
        f"model={model.name}: its sizes do not fit each other: {what}; choose others under model.config (widths of towers that "
        "read each other, heads that divide a width, images of whole patches), or another model.checkpoint"
    )
