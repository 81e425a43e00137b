"""Vision towers, alone or in a composite: the class that reads one, its image processor, and the size of its images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from vlatrain.backbones.architecture import image_processor_class, model_class
from vlatrain.backbones.describe import folders_of
from vlatrain.backbones.pretrained import read_image_processor, refuse_code, refuse_family, whole
from vlatrain.config.families import VISION_TOWERS

if TYPE_CHECKING:
    from vlatrain.config import ModelConfig


def submodel_class(config: ModelConfig, submodel: str) -> type[PreTrainedModel]:
    """The class of transformers that a submodel is of."""
    return model_class(config.submodels[submodel].architecture, f"model.submodels.{submodel}.architecture")


def checked_class(config: ModelConfig, submodel: str, checkpoint: str, named: str) -> type[PreTrainedModel]:
    """The class that reads a submodel's checkpoint, which may be that of a larger model.

    Raises:
        OSError: the checkpoint cannot be had.
        UserError: it is of another kind of model, or comes with code of its own.
    """
    kind = submodel_class(config, submodel)
    refuse_code(kind, checkpoint)
    alone = config.family in VISION_TOWERS
    refuse_family(kind, checkpoint, named, "" if alone else f"model.submodels.{submodel}.architecture={kind.__name__}")
    return kind


def read_images(config: ModelConfig, checkpoint: str) -> Any:
    """The image processor of a vision tower's checkpoint, on PIL; ViT's where its own needs torchvision."""
    kind: Any = submodel_class(config, "vision")
    made = image_processor_class(whole(kind.config_class.model_type))
    return read_image_processor(checkpoint, made if made.__name__ == "ViTImageProcessorPil" else None)


def described_side(config: ModelConfig, most: int) -> int:
    """Pixels a side of the images that a description's vision tower is given, which may be less than its settings allow for."""
    return min(config.submodels["vision"].image_size or most, most)


def image_shape(config: ModelConfig, task: str, image_processor: Any, most: int) -> tuple[int, int]:
    """Height and width of what is made of a square image: by the checkpoint's image processor, where none has been read; as the
    description says, where there is no checkpoint yet.

    Args:
        config: the description.
        task: the task.
        image_processor: the image processor; None: only shapes are asked for.
        most: the side that the tower's settings name.
    """
    folder = folders_of(config, task).get("vision")
    with torch.device("cpu"):
        if image_processor is None and folder is not None and not config.random_init:
            image_processor = read_images(config, str(folder))
        if image_processor is not None:
            pixels = image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
            return int(pixels.shape[-2]), int(pixels.shape[-1])
    side = described_side(config, most)
    return side, side
