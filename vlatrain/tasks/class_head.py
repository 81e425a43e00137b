"""Classification by a vision tower alone (`Classifier`): its head has a row for each class, which trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from vlatrain.backbones.base import Backbone, Classifier, unit
from vlatrain.config import TaskConfig
from vlatrain.data.masks import names_of
from vlatrain.data.sample import Sample
from vlatrain.tasks.base import ImageBatch
from vlatrain.tasks.classification import ClassBatch, Classification, Over


class ByHead(Classification):
    """Classification on a `Classifier` backbone."""

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        super().__init__(config, backbone, train)
        self.classifier = cast(Classifier, backbone)

    def images(self, samples: Sequence[Sample]) -> ImageBatch:
        """Images."""
        return {"ids": [sample.id for sample in samples], "inputs": self.inputs(samples)}

    def collate(self, samples: Sequence[Sample]) -> ClassBatch:
        """Images and their classes."""
        return {**self.images(samples), "label": torch.tensor([self.place[sample.label] for sample in samples])}

    def loss(self, batch: ClassBatch) -> Tensor:
        """Cross-entropy over the classes."""
        return cross_entropy(self.classifier.class_logits(batch["inputs"]), batch["label"])

    def known(self, over: Over = map) -> None:
        """Nothing: what is known of the classes is in the head."""

    def scores(self, batch: ImageBatch, known: None) -> Tensor:
        """The head's logits (B, C)."""
        return self.classifier.class_logits(batch["inputs"])

    def pairs(self, batch: ClassBatch) -> tuple[Tensor, Tensor]:
        """Unit features (B, D) of a training batch's images, and their classes as one-hot rows (B, C)."""
        features = unit(self.classifier.image_features(batch["inputs"]))
        return features, one_hot(batch["label"], len(self.config.classes)).to(features.dtype)

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """Images of the first class."""
        logits = self.classifier.class_logits(self.backbone.blank(batch_size, device))
        return cross_entropy(logits, torch.zeros(batch_size, dtype=torch.long, device=device))

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """Logits."""
        self.classifier.class_logits(self.backbone.blank(batch_size, device))

    def _settings(self) -> dict[str, Any]:
        return {"pool": self.backbone.config.options.get("pool", "class")}


def resolve_classes(config: TaskConfig, backbone: Backbone, train: Sequence[Sample]) -> TaskConfig:
    """Give a backbone with a head the classes that it is to tell apart: `task.classes`, else those of the training data.

    Args:
        config: the task's settings.
        backbone: a `Classifier`, before anything is put into it.
        train: the training samples; none for a finished run, which has its classes in its settings.

    Returns:
        The settings with the classes.
    """
    found = (
        names_of(train, config.ignore) if "mask" in config.spec.fields else sorted({sample.label for sample in train})
    )
    classes = config.classes or found
    cast(Classifier, backbone).take_classes(classes)
    return replace(config, classes=classes)
