"""Visual question answering by choice from a list: a classifier says of each answer whether it is right.

The loss is binary cross-entropy on soft targets, added up over the answers (Teney et al., "Tips and Tricks for Visual Question
Answering", CVPR 2018; Kim et al., ViLT, ICML 2021, section 4.3, and LXMERT train so): an answer that n of ten annotators gave is
right to min(0.3 n, 1).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from vlatrain.backbones.base import Answerer, Backbone
from vlatrain.config import TaskConfig
from vlatrain.data.lazy import column
from vlatrain.data.sample import Sample
from vlatrain.metrics.vqa import normalise
from vlatrain.tasks.base import ImageBatch
from vlatrain.tasks.lengths import Use, question_use
from vlatrain.tasks.looks import Seen
from vlatrain.tasks.vqa import Vqa, VqaBatch

log = logging.getLogger("vlatrain")

ENOUGH = 0.9  # share of the training questions that a checkpoint's own answers must be able to answer to be kept
MOST = 3129  # answers that a list made from training data has: as many as the usual one of VQAv2


class Answering(Vqa):
    """VQA on an `Answerer` backbone.

    Args:
        config: its settings.
        backbone: the backbone, with the answers that `resolve_answers` gave it.
        train: the training samples.
    """

    takes = Answerer

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        self.answerer = cast(Answerer, backbone)
        super().__init__(replace(config, answer_list=list(self.answerer.answers)), backbone, train)
        self.place = _places(self.answerer.answers)

    def collate(self, samples: Sequence[Sample]) -> VqaBatch:
        """Images, questions, and how right each answer is: (B, answers)."""
        return {**self.questions(samples), "targets": self.targets(samples)}

    @property
    def generates(self) -> bool:
        """Never."""
        return False

    def uses(self) -> list[Use]:
        """Questions, and answers, of which only those in the list count."""

        def look(answers: Sequence[str]) -> Iterator[Seen]:
            return (Seen(1, 1 if normalise(answer) in self.place else None, False) for answer in answers)

        nothing = "none of their answers is in the list that the model chooses from (task.answer_list)"
        lost = "no answer of {} can be chosen"
        return [
            question_use(self.backbone),
            Use("answers", "target", lambda one: one.answers, look, lost=lost, nothing=nothing),
        ]

    def alike(self, key: str) -> tuple[list[str], bool]:
        """Answers have a place each, and are not read."""
        return [], False

    def targets(self, samples: Sequence[Sample]) -> Tensor:
        """How right each answer is, (B, answers), 0 to 1: the weights where they are given, else by the number of annotators."""
        found = torch.zeros(len(samples), len(self.answerer.answers))
        for row, sample in enumerate(samples):
            enough = min(len(sample.answers), 10 / 3)  # so many of them that an answer counts as right
            weights = sample.weights or (1 / enough,) * len(sample.answers)
            for answer, weight in zip(sample.answers, weights, strict=True):
                if (place := self.place.get(normalise(answer))) is not None:
                    found[row, place] += weight
        return found.clamp(max=1)

    def loss(self, batch: VqaBatch) -> Tensor:
        """Mean over the samples of the sum over the answers."""
        logits = self.answerer.answer_logits(batch["inputs"])
        return binary_cross_entropy_with_logits(logits, batch["targets"], reduction="none").sum(dim=1).mean()

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """Questions that no answer is right for."""
        targets = torch.zeros(batch_size, len(self.answerer.answers), device=device)
        inputs = self.backbone.blank(batch_size, device, self.lengths["questions"])
        return self.loss({"ids": range(batch_size), "inputs": inputs, "targets": targets})

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """Logits of the answers."""
        self.answerer.answer_logits(self.backbone.blank(batch_size, device, self.lengths["questions"]))

    def answer(self, batch: ImageBatch, alternatives: int = 1) -> list[list[tuple[str, float]]]:
        """For each question the likeliest answers of the list, each with its own probability, best first."""
        return self._likeliest(self.answerer.answer_logits(batch["inputs"]).sigmoid(), alternatives)

    @property
    def decoding(self) -> dict[str, Any]:
        """How answers are found."""
        return {"answers": "classify", "list": len(self.config.answer_list)}


def resolve_answers(config: TaskConfig, backbone: Backbone, train: Sequence[Sample]) -> TaskConfig:
    """Give a backbone the answers that it is to choose from.

    They are `task.answer_list`; else the checkpoint's own, if nearly all training questions have an answer among them; else the
    training data's, the most frequent first.

    Args:
        config: the task's settings.
        backbone: an `Answerer`, before anything is put into it.
        train: the training samples; none for a finished run, which has its answers in its settings.

    Returns:
        The settings with the answers.
    """
    answerer = cast(Answerer, backbone)
    config = replace(config, answer_list=config.answer_list or _chosen(answerer.answers, train))
    answerer.take_answers(config.answer_list)
    return config


def _chosen(own: list[str], train: Sequence[Sample]) -> list[str]:
    known = _places(own)
    answerable = sum(any(normalise(one) in known for one in answers) for answers in column(train, "answers"))
    if answerable >= ENOUGH * len(train):
        share = 100 * answerable / max(1, len(train))
        log.info("Answers: the %s of the checkpoint, for %.1f %% of the training questions", f"{len(own):,}", share)
        return own
    counts: dict[str, Counter[str]] = {}  # by normal form, how often each form of an answer occurs
    for answers in column(train, "answers"):
        for answer in answers:
            counts.setdefault(normalise(answer), Counter())[answer] += 1
    often = sorted(counts.values(), key=lambda forms: -forms.total())
    usual = [forms.most_common(1)[0][0] for forms in often[:MOST]]
    new = sum(answer not in own for answer in usual)
    log.info(
        "Answers: %s of the training data's %s, of which the classifier has yet to learn %s",
        f"{len(usual):,}", f"{len(often):,}", f"{new:,}",
    )  # fmt: skip
    return usual


def _places(answers: Sequence[str]) -> dict[str, int]:
    """By normal form, the place of each answer; of two with the same form the first's."""
    return {normalise(answer): place for place, answer in reversed([*enumerate(answers)])}
