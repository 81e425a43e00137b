"""Visual grounding by a model that writes boxes, in the format of its family (`vlatrain.backbones.box_words`).

It is visual question answering whose answers are boxes as text: learned and generated as there. What cannot be read as a box counts
as no box, and how often is reported (`unparsed`). The score of a box is the probability of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from vlatrain.backbones.base import Backbone, Generator
from vlatrain.backbones.box_words import FORMATS, size_taken
from vlatrain.config import TaskConfig, UserError
from vlatrain.data.images import upright_size
from vlatrain.data.sample import Sample
from vlatrain.metrics.grounding import Box
from vlatrain.tasks.base import Asking, Batches, Evaluation, Found
from vlatrain.tasks.grounding import GroundingBatch, GroundingScores, pixels
from vlatrain.tasks.lengths import Use, question_use, reference_use
from vlatrain.tasks.looks import writing
from vlatrain.tasks.vqa import Vqa, VqaBatch

ANY = (1000, 1000)  # the size of an image, where only the format of a text counts


class GroundingWords(GroundingScores):
    """Grounding on a `Generator` backbone.

    Args:
        config: its settings.
        backbone: the backbone.
        train: the training samples.

    Raises:
        UserError: the backbone writes nothing.
    """

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        if not isinstance(backbone, Generator):
            raise UserError(
                f"model.family={backbone.config.family}: writes no boxes; task=grounding finds them by a head"
            )
        super().__init__(config, backbone)
        self.vqa = Vqa(replace(config, answers="generate"), backbone)
        self.words = FORMATS[backbone.config.box_words]
        backbone.writes_places = True

    @property
    def generates(self) -> bool:
        """Always."""
        return True

    def uses(self) -> list[Use]:
        """Expressions, and boxes as texts: learned, and to be written."""

        def written(one: Sample) -> list[str]:
            return [self.text(one)] if one.boxes else []

        def form(text: str) -> tuple[Box, ...]:
            return tuple(self.words.read(text, ANY))

        learned = Use("boxes", "target", written, writing(self.backbone), "train")
        return [question_use(self.backbone), learned, reference_use("boxes", written, self.backbone, form, whole=True)]

    def text(self, sample: Sample) -> str:
        """A sample's boxes as the model writes them."""
        return self.words.write(sample.boxes, self._taken(sample), sample.question)

    def collate(self, samples: Sequence[Sample]) -> VqaBatch:
        """Images, expressions, and the boxes as their answers."""
        return self.vqa.collate([replace(sample, answers=(self.text(sample),), weights=()) for sample in samples])

    def loss(self, batch: VqaBatch) -> Tensor:
        """That of answering with the boxes."""
        return self.vqa.loss(batch)

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """As of answers."""
        self.vqa.lengths = self.lengths
        return self.vqa.loss_on_meta(batch_size, device)

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """As of answers."""
        self.vqa.lengths = self.lengths
        self.vqa.evaluate_on_meta(batch_size, device)

    def questions(self, samples: Sequence[Sample]) -> GroundingBatch:
        """Images and expressions; and the sizes of images as the model takes them, which some formats go by."""
        return {**super().questions(samples), "taken": [self._taken(sample) for sample in samples]}

    def asking(self) -> Asking:
        """Expressions, and where what they name is."""
        return self.questions, lambda batch, most: self.answer(cast(GroundingBatch, batch))

    def answer(self, batch: GroundingBatch) -> list[list[Found]]:
        """For each expression the boxes that are written, in pixels; or the text that is none."""
        found = []
        for best, size, taken in zip(self.vqa.answer(batch), batch["sizes"], batch["taken"], strict=True):
            text, score = best[0]
            boxes = self.words.read(text, taken)
            found.append([Found(text, score, pixels(box, size)) for box in boxes] or [Found(text, score, None)])
        return found

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Accuracy and IoU of what is written, see `vlatrain.metrics.grounding`."""
        found = [
            [Found(*one) for one in own]
            for answered in batches(samples, self.questions, self.answer)
            for own in answered
        ]
        unparsed = sum(own[0].box is None for own in found)
        settings = {"route": "words", "format": self.backbone.config.box_words, "unparsed": unparsed}
        evaluation = self.scored(samples, found, {**settings, "decode": vars(self.config.decode)})
        predictions = [
            {**record, "text": own[0].text} for record, own in zip(evaluation.predictions, found, strict=True)
        ]
        return replace(evaluation, predictions=predictions)

    def _taken(self, sample: Sample) -> tuple[int, int]:
        return size_taken(self.backbone.image_processor, upright_size(sample.image))
