"""A classifier over a list of answers: what backbones have that answer questions by choice (`vlatrain.backbones.base.Answerer`).

It is ViLT's (Kim et al., ICML 2021; transformers' `ViltForQuestionAnswering`): a layer, a norm, a GELU, a layer with a row for each
answer. Models that come without one get it by `with_classifier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class AnswerList:
    """What a backbone whose model has a `classifier` knows of its answers."""

    model: Any

    @property
    def answers(self) -> list[str]:
        """The answers that there are, in the order of the logits."""
        return [self.model.config.id2label[place] for place in range(self.model.config.num_labels)]

    def take_answers(self, answers: Sequence[str]) -> None:
        """Have these answers: the classifier keeps what it knows of those it had, and draws, always the same, what is new."""
        before = {answer: place for place, answer in enumerate(self.answers)}
        if list(answers) == list(before):
            return
        old: nn.Linear = self.model.classifier[-1]
        new = nn.Linear(old.in_features, len(answers), device=old.weight.device, dtype=old.weight.dtype)
        drawn = torch.randn(len(answers), old.in_features, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            new.weight.copy_(drawn * getattr(self.model.config, "initializer_range", STD))
            new.bias.zero_()
            for place, answer in enumerate(answers):
                if answer in before:
                    new.weight[place] = old.weight[before[answer]]
                    new.bias[place] = old.bias[before[answer]]
        self.model.classifier[-1] = new.requires_grad_(old.weight.requires_grad).train(old.training)
        self.model.config.id2label = dict(enumerate(answers))
        self.model.config.label2id = {answer: place for place, answer in enumerate(answers)}
        self.model.num_labels = len(answers)


STD = 0.02  # of new weights, where a model's settings say nothing


def with_classifier(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A class of dual encoders with a `classifier` that reads two vectors of the size of their features."""

    class Answering(kind):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            size = getattr(config, "projection_dim", None) or config.vision_config.hidden_size
            self.classifier = nn.Sequential(
                nn.Linear(2 * size, size), nn.LayerNorm(size), nn.GELU(), nn.Linear(size, config.num_labels)
            )
            self.post_init()

    Answering.__name__ = Answering.__qualname__ = f"{kind.__name__}ForAnswers"
    return Answering
