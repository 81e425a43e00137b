"""Semantic segmentation: the class of each pixel, by a linear head on the states of a vision tower's patches.

The linear protocol of Oquab et al., "DINOv2" (TMLR 2024), section 7.4: a linear layer gives each patch logits, which are stretched
bilinearly to the size of the image. Deviations: no batch norm in front of the layer, and the image is squeezed to the size that the
tower takes, so that all of it is seen and no part twice.

Training compares at the size that the tower is given; scores are of all pixels of the masks as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from vlatrain.backbones.base import Backbone, Classifier
from vlatrain.config import TaskConfig
from vlatrain.data.masks import as_text, content_of, ids_of, names_of
from vlatrain.data.sample import Sample
from vlatrain.metrics import segmentation as metric
from vlatrain.tasks.base import Asking, Batches, Evaluation, ImageBatch, Task
from vlatrain.tasks.yardsticks import Baseline, Yardsticks

IGNORED = -100  # of torch's cross-entropy


class MaskBatch(ImageBatch):
    """Images and masks.

    Attributes:
        masks: (B, H, W) the class of each pixel of what the tower is given.
    """

    masks: Tensor


class TruthBatch(ImageBatch):
    """Images, with their masks as they are.

    Attributes:
        truth: of each image (H, W), of its own size.
    """

    truth: list[Tensor]


class Segmentation(Task):
    """Segmentation on a `Classifier` backbone.

    Args:
        config: its settings.
        backbone: the backbone.
        train: the training samples: where the classes come from if none are configured.
    """

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        if not config.classes and train:
            config = replace(config, classes=names_of(train, config.ignore))
        super().__init__(config, backbone)
        self.classifier = cast(Classifier, backbone)

    def images(self, samples: Sequence[Sample]) -> ImageBatch:
        """Images."""
        return {"ids": [sample.id for sample in samples], "inputs": self.inputs(samples)}

    def collate(self, samples: Sequence[Sample]) -> MaskBatch:
        """Images, and their masks at the size of what the tower is given, by the nearest pixel."""
        height, width = self.classifier.image_shape
        masks = []
        for sample in samples:
            assert sample.mask is not None
            ids = Image.fromarray(ids_of(sample.mask)).resize((width, height), Image.Resampling.NEAREST)
            masks.append(np.asarray(ids).astype(np.int64))
        found = torch.from_numpy(np.stack(masks))
        return {**self.images(samples), "masks": found.where(found != self.config.ignore, IGNORED)}

    def loss(self, batch: MaskBatch) -> Tensor:
        """Cross-entropy over the classes: the mean over an image's pixels that count, and of these over the images."""
        masks = batch["masks"]
        logits = self.stretched(self.classifier.patch_logits(batch["inputs"]), masks.shape[-2:])
        losses = cross_entropy(logits, masks, ignore_index=IGNORED, reduction="none")  # (B, H, W)
        counted = (masks != IGNORED).sum(dim=(1, 2)).clamp(min=1)
        return (losses.sum(dim=(1, 2)) / counted).mean()

    def stretched(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (B, C, h, w) of patches as those (B, C, H, W) of pixels."""
        return interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Mean intersection over union and accuracies; see `vlatrain.metrics.segmentation`."""
        found = [one for batch in batches(samples, self._with_truth, self._compared) for one in batch]
        confusions = np.stack([confusion.numpy() for confusion, _ in found])
        predictions = []
        for sample, own, (_, mask) in zip(samples, confusions, found, strict=True):
            score = metric.score(own[None])["miou"]
            said = [self._described(counts) for counts in (own.sum(axis=0), own.sum(axis=1))]
            predictions.append(
                {"id": sample.id, "prediction": said[0], "references": [said[1]], "score": score, "mask": mask}
            )
        each = {
            name: round(value, 2)
            for name, value in zip(self.config.classes, metric.ious(confusions).tolist(), strict=True)
            if value == value  # of those that there are
        }
        return Evaluation(
            metric.score(confusions),
            {"classes": len(self.config.classes), "ignore": self.config.ignore, "iou": each},
            predictions,
            metric.statistics(confusions),
            [len(samples)],
            self.groupings(samples, ["miou"]),
        )

    def asking(self) -> Asking:
        """Images, and which classes they show where."""
        return self.images, self.regions

    def regions(self, batch: ImageBatch, alternatives: int = 1) -> list[list[tuple[str, float, str]]]:
        """For each image the classes with the largest shares of it, and the class of each pixel of what the tower is given."""
        logits = self.stretched(self.classifier.patch_logits(batch["inputs"]), self.classifier.image_shape)
        answers = []
        for ids in logits.argmax(dim=1).cpu().numpy():
            counts = np.bincount(ids.reshape(-1), minlength=len(self.config.classes))
            best = metric.shares(counts, self.config.classes)[:alternatives]
            answers.append([(name, share, as_text(ids)) for name, share in best])
        return answers

    def constants(self, train: Sequence[Sample]) -> dict[str, Any]:
        """The class of most pixels."""
        pixels: dict[int, int] = {}
        for sample in train:
            assert sample.mask is not None
            for number, count in content_of(sample.mask).pixels.items():
                pixels[number] = pixels.get(number, 0) + count
        pixels.pop(self.config.ignore, None)
        return {"class": max(pixels, key=lambda number: (pixels[number], -number))} if pixels else {}

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """That class, everywhere."""
        always, classes = constants.get("class"), len(self.config.classes)
        if always is None or always >= classes:
            return Yardsticks()
        confusion = np.zeros((1, classes, classes), dtype=np.int64)
        for sample in samples:
            assert sample.mask is not None
            for number, count in content_of(sample.mask).pixels.items():
                if number != self.config.ignore:
                    confusion[0, number, always] += count
        named = f"always {self.config.classes[always]!r}"
        return Yardsticks({"commonest_class": Baseline(metric.score(confusion), named)})

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """Images of the first class."""
        masks = torch.zeros(batch_size, *self.classifier.image_shape, dtype=torch.long, device=device)
        return self.loss({"ids": range(batch_size), "inputs": self.backbone.blank(batch_size, device), "masks": masks})

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """Logits of patches, and of the pixels of one image after the other."""
        logits = self.classifier.patch_logits(self.backbone.blank(batch_size, device))
        self.stretched(logits[:1], self.classifier.image_shape)

    def _with_truth(self, samples: Sequence[Sample]) -> TruthBatch:
        truth = [torch.from_numpy(ids_of(sample.mask)) for sample in samples if sample.mask is not None]
        return {**self.images(samples), "truth": truth}

    def _compared(self, batch: TruthBatch) -> list[tuple[Tensor, str]]:
        """Of each image the confusion (C, C), and the predicted mask."""
        found = []
        for logits, truth in zip(self.classifier.patch_logits(batch["inputs"]), batch["truth"], strict=True):
            predicted = self.stretched(logits[None], truth.shape)[0].argmax(dim=0).cpu().numpy()
            own = metric.confusion(truth.cpu().numpy(), predicted, len(self.config.classes), self.config.ignore)
            found.append((torch.from_numpy(own), as_text(predicted)))
        return found

    def _described(self, counts: np.ndarray) -> str:
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in metric.shares(counts, self.config.classes))
