"""A description's transformers classes: the model of a task, its settings, its image processor. Nothing is loaded here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from vlatrain.backbones import older
from vlatrain.config import UserError

older.admit_pil_processors(transformers)


def model_class(name: str, key: str) -> type[PreTrainedModel]:
    """A model class of transformers.

    Args:
        name: its name.
        key: where the description says so, for the message.

    Raises:
        UserError: there is no such model class. A description is a user's file, and must not be able to name anything else.
    """
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise UserError(f"{key}={name} is no model class of transformers")
    return found


def transformers_config(settings: dict[str, Any]) -> PretrainedConfig:
    """Plain settings, `model_type` among them, as transformers' own."""
    settings = dict(settings)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def image_processor_class(model_type: str) -> Any:
    """The image processor of a kind of model that works with PIL: equal on every machine, with or without torchvision.

    Where a model's own needs torchvision, it is ViT's, which does the same: resize, rescale, normalise.
    """
    return getattr(transformers, IMAGE_PROCESSOR_MAPPING_NAMES[model_type].get("pil") or "ViTImageProcessorPil")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bar and its table of unused keys (one file may serve several classes)."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
