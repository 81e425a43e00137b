"""A vision tower of transformers alone (DINOv2, DINOv3, ViT, the image towers of CLIP and SigLIP, ConvNeXt) with a trained head.

There is no text: classes are what the training data says, and a head learns them (a linear probe: the head alone). What a
description says of a tower is what a composite's vision submodel says (`conf/model/vision/`), and `VisionOptions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from vlatrain.backbones.architecture import image_processor_class
from vlatrain.backbones.base import Backbone, Inputs, Pair, exact, options_as, square_processor
from vlatrain.backbones.describe import HEADED
from vlatrain.backbones.families.vision_head import Headed, HeadedConfig
from vlatrain.backbones.pretrained import model_type, read_image_processor, read_model, refuse_images, whole
from vlatrain.backbones.towers import checked_class, described_side, image_shape, read_images
from vlatrain.config import ModelConfig
from vlatrain.config.families import VisionOptions

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels


class VisionTower(Backbone):
    """A vision tower with a head. See `Classifier` for the operations."""

    model: Any
    scoring = ("head",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.options = options_as(VisionOptions, self.config)
        self.towers = self.config.tasks[self.task].towers
        registers = getattr(self.model.config.vision_config, "num_register_tokens", 0)
        self.dense = bool(self.config.tasks[self.task].config.get("dense"))
        if self.dense and self.image_processor is not None:
            _see_all(self.image_processor, *self.image_shape)
        self.leading = int("class" in self.options.pools) + registers  # states in front of those of patches

    @classmethod
    def architecture(cls, config: ModelConfig, task: str) -> type[PreTrainedModel]:
        """The same for every task."""
        return Headed

    @classmethod
    def build(cls, config: ModelConfig, task: str, settings: dict[str, Any]) -> PreTrainedModel:
        """The tower with random weights, on torch's default device, with a head."""
        return Headed(_headed(config, task, AutoConfig.for_model(**settings["vision_config"])))

    @classmethod
    def read(cls, config: ModelConfig, task: str, checkpoint: str, stored: bool = False) -> tuple[PreTrainedModel, Any]:
        """The tower of a checkpoint, which may be that of a larger model, with a new head; or both from a folder that has both."""
        named = f"model.checkpoint={checkpoint}"
        processor = cls.processor_of(config, task, checkpoint)
        if model_type(checkpoint) == HEADED:
            model = read_model(Headed, checkpoint, named, stored=stored, used=partial(cls.used, config, task))
        else:
            kind = checked_class(config, "vision", checkpoint, named)
            used = partial(cls.used, config, task, "vision.")
            tower = read_model(kind, checkpoint, named, stored=stored, used=used)
            model = Headed(_headed(config, task, tower.config), tower)
        refuse_images(model, processor.image_processor, config.towers[config.tasks[task].towers[0]], checkpoint)
        return model, processor

    @classmethod
    def processor_of(cls, config: ModelConfig, task: str, checkpoint: str) -> Any:
        """The image processor of a checkpoint, on PIL; ViT's where its own needs torchvision."""
        return Pair(None, read_images(config, checkpoint))

    @classmethod
    def read_processor(cls, checkpoint: str) -> Any:
        """The image processor of a folder."""
        return Pair(None, read_image_processor(checkpoint))

    @classmethod
    def make_processor(cls, config: ModelConfig, settings: dict[str, Any], texts: Iterable[str]) -> Any:
        """An image processor for random weights of such settings."""
        vision = settings["vision_config"]
        kind, side = whole(vision["model_type"]), described_side(config, vision["image_size"])
        if kind == "convnext":  # its processor crops the middle of a square that is larger by 1 / crop_pct
            return Pair(None, image_processor_class(kind)(size={"shortest_edge": side}))
        return Pair(None, square_processor({"vision_config": {"image_size": side}, "model_type": kind}))

    @classmethod
    def with_tokens(cls, config: ModelConfig, settings: dict[str, Any], processor: Any) -> dict[str, Any]:
        """The settings as they are: there are no tokens."""
        return settings

    # -- images --

    @cached_property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of what the image processor makes of an image."""
        return image_shape(self.config, self.task, self.image_processor, self.model.config.vision_config.image_size)

    @property
    def image_processor(self) -> Any:
        """Its image processor; None where only shapes are asked for."""
        return self.processor.image_processor if self.processor is not None else None

    def inputs(self, images: Sequence[Pixels], questions: Sequence[str] | None = None, max_length: int = 0) -> Inputs:
        """Images, (B, 3, H, W) as `pixels`.

        Raises:
            ValueError: there are questions.
        """
        if questions is not None:
            raise ValueError("a vision tower is asked no questions")
        if self.dense:  # squeezed, so that a mask can be, too
            height, width = self.image_shape
            images = [image.resize((width, height), self.image_processor.resample) for image in images]
        return {"pixels": self.pixels(images)}

    def blank(self, batch_size: int, device: torch.device | str, question: int = 0) -> Inputs:
        """Inputs that have only shapes."""
        return {"pixels": torch.zeros(batch_size, 3, *self.image_shape, device=device)}

    def run_frozen_towers(self, inputs: Inputs) -> None:
        """Run the tower."""
        self._states(inputs)

    def _states(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """All last states (B, S, width) of images, normed; and what the tower itself makes of them (B, width), if it does."""
        vision, pixels = self.model.vision, inputs["pixels"]
        if len(self.towers) > 1:
            return self._in_stages(inputs)
        if self.towers[0] in inputs.get("prefix", {}):  # nothing looks at them; a tower may ask for their shape
            pixels = pixels.new_zeros(len(pixels), 1, 1, 1).expand(-1, 3, *self.image_shape)
        with self.prefix(self.towers[0], inputs):
            found = vision(pixel_values=pixels)
        return self._normed(found.last_hidden_state), getattr(found, "pooler_output", None)

    def _in_stages(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The same of a convolutional tower, each of whose stages is a tower: those before one that is kept do nothing."""
        kept, states = inputs.get("prefix", {}), inputs["pixels"]
        first = max((place for place, name in enumerate(self.towers) if name in kept), default=0)
        for name in self.towers[first:]:
            tower = self.config.towers[name]
            if name not in kept:
                enters = self.model.get_submodule(tower.embeddings)
                for step in enters if isinstance(enters, nn.ModuleList) else [enters]:
                    states = step(states)
            with self.prefix(name, inputs):
                for layer in self.model.get_submodule(tower.layers):
                    states = layer(states)  # (B, width, h, w)
        norm = self.model.vision.get_submodule(self.config.submodels["vision"].norm)
        return self._normed(states.flatten(2).transpose(1, 2)), norm(states.mean(dim=(-2, -1)))

    def _normed(self, states: Tensor) -> Tensor:
        norm = self.config.submodels["vision"].norm
        return self.model.vision.get_submodule(norm)(states) if norm else states

    # -- classes --

    @property
    def classes(self) -> list[str]:
        """The classes that its head has, in the order of the logits."""
        return [self.model.config.id2label[place] for place in range(self.model.config.num_labels)]

    def take_classes(self, classes: Sequence[str]) -> None:
        """Have these classes: the head keeps what it knows of those it had, and knows nothing of the others."""
        before = {name: place for place, name in enumerate(self.classes)}
        if list(classes) == list(before):
            return
        old: nn.Linear = self.model.head.linear
        new = nn.Linear(old.in_features, len(classes), device=old.weight.device, dtype=old.weight.dtype)
        with torch.no_grad():
            for parameter, known in ((new.weight, old.weight), (new.bias, old.bias)):
                parameter.zero_()
                for place, name in enumerate(classes):
                    if name in before:
                        parameter[place] = known[before[name]]
        self.model.head.linear = new.requires_grad_(old.weight.requires_grad).train(old.training)
        self.model.config.id2label = dict(enumerate(classes))
        self.model.config.label2id = {name: place for place, name in enumerate(classes)}
        self.model.config.num_labels = len(classes)

    def image_features(self, inputs: Inputs) -> Tensor:
        """Features (B, D) of images: what the head's linear layer reads."""
        states, own = self._states(inputs)
        features: Tensor = self.model.head.pooled(states, self.leading, own)
        return features

    def class_logits(self, inputs: Inputs) -> Tensor:
        """Of each image a logit for each class: (B, classes)."""
        return exact(self.model.head, self.image_features(inputs))

    def patch_logits(self, inputs: Inputs) -> Tensor:
        """Of each patch a logit for each class: (B, classes, h, w)."""
        states, _ = self._states(inputs)
        logits = exact(self.model.head, states[:, self.leading :])  # (B, P, classes)
        height, width = self.image_shape
        down = round((logits.shape[1] * height / width) ** 0.5)  # patches are square
        in_grid: Tensor = logits.transpose(1, 2).unflatten(-1, (down, -1))
        return in_grid


def _headed(config: ModelConfig, task: str, vision: Any) -> HeadedConfig:
    """The settings of a tower with a new head as a description says."""
    submodel = config.submodels["vision"]
    return HeadedConfig(
        vision_config=vision.to_dict(),  # a copy: in its own it would forget how a loaded model computes attention
        vision_class=submodel.architecture,
        vision_norm=submodel.norm,
        pool=options_as(VisionOptions, config).pool,
        dense=bool(config.tasks[task].config.get("dense")),
        id2label={0: "0", 1: "1"},  # until the data says which there are
    )


def _see_all(processor: Any, height: int, width: int) -> None:
    """Let an image processor take images of such a size as they are, without cropping."""
    if hasattr(processor, "crop_pct"):  # ConvNeXt's: it enlarges an image before it crops the middle
        processor.crop_pct = 1.0
    else:
        processor.size = {"height": height, "width": width}
    if hasattr(processor, "do_center_crop"):
        processor.do_center_crop = False
