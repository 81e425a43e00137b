"""Captioning: the decoder learns the captions by teacher forcing, and writes them by greedy or beam search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor

from vlatrain.backbones.base import Backbone, Generator, Text, blank_text
from vlatrain.backbones.writing import Written, write
from vlatrain.config import TaskConfig
from vlatrain.data.lazy import column
from vlatrain.data.sample import Sample
from vlatrain.metrics import caption as metric
from vlatrain.metrics.bootstrap import Statistic, mean
from vlatrain.metrics.caption_constant import BestCaption, best_constant
from vlatrain.metrics.ptb import tokenize
from vlatrain.tasks.base import (
    Asking,
    Batches,
    Evaluation,
    ImageBatch,
    Task,
    as_written,
    group_index_of,
    mean_per_owner,
    sequence_losses,
    token_losses,
)
from vlatrain.tasks.lengths import AS_WRITTEN, Use, reference_use
from vlatrain.tasks.looks import writing
from vlatrain.tasks.yardsticks import Baseline, Yardsticks, of_constant


class CaptionBatch(ImageBatch):
    """Images and captions.

    Attributes:
        caption: (N, L) the captions.
        given: number of their leading tokens that are not learned.
        group_index: (N,) the captions' images.
    """

    caption: Text
    given: int
    group_index: Tensor


class Captioning(Task):
    """Captioning on a `Generator` backbone."""

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        super().__init__(config, backbone)
        self.generator = cast(Generator, backbone)

    @property
    def generates(self) -> bool:
        """Always."""
        return True

    def uses(self) -> list[Use]:
        """Captions: learned, and to be written."""
        look = writing(self.backbone, self.config.prompt)
        learned = Use("captions", "target", lambda one: one.captions, look, "train")
        return [learned, reference_use("captions", lambda one: one.captions, self.backbone, _compared)]

    def images(self, samples: Sequence[Sample]) -> ImageBatch:
        """Images."""
        return {"ids": [sample.id for sample in samples], "inputs": self.inputs(samples)}

    def collate(self, samples: Sequence[Sample]) -> CaptionBatch:
        """Images, and every caption, each sample's one after the other: all captions of an image share its states."""
        texts = [caption for sample in samples for caption in sample.captions]
        target, given = self.generator.target(texts, self.longest("target"), self.config.prompt)
        group_index = group_index_of([len(sample.captions) for sample in samples])
        return {**self.images(samples), "caption": target, "given": given, "group_index": group_index}

    def loss(self, batch: CaptionBatch) -> Tensor:
        """Mean over the images of the mean over their captions of the captions' losses."""
        context = self.generator.context(batch["inputs"])
        logits = self.generator.logits(self.backbone.select_rows(context, batch["group_index"]), batch["caption"])
        losses = sequence_losses(*token_losses(logits, batch["caption"], batch["given"]))
        return mean_per_owner(losses, torch.ones_like(losses), batch["group_index"], len(batch["ids"])).mean()

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """As many captions an image as `lengths` says."""
        each = self.lengths["texts"]
        return self.loss(
            {
                "ids": range(batch_size),
                "inputs": self.backbone.blank(batch_size, device),
                "caption": blank_text(each * batch_size, self.lengths["captions"], device),
                "given": 1,
                "group_index": torch.arange(batch_size, device=device).repeat_interleave(each),
            }
        )

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """The first token of captions."""
        context = self.generator.context(self.backbone.blank(batch_size, device))
        self.begin_on_meta(context)

    def asking(self) -> Asking:
        """Images, and their captions."""
        return self.images, self.caption

    def caption(self, batch: ImageBatch, alternatives: int = 1) -> list[list[Written]]:
        """For each image the best captions, best first."""
        context = self.generator.context(batch["inputs"])
        texts = write(self.generator, context, self.config.decode, self.config.prompt, alternatives)
        return [texts[start : start + alternatives] for start in range(0, len(texts), alternatives)]

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """CIDEr-D, BLEU-1..4 and ROUGE-L; METEOR and SPICE if asked for and there is Java; see `vlatrain.metrics.caption`."""
        found = [Written(*best[0]) for captions in batches(samples, self.images, self.caption) for best in captions]
        texts = [one.text for one in found]
        scores = metric.score(texts, [sample.captions for sample in samples])
        predictions: list[dict[str, Any]] = [
            {"id": sample.id, **one.record, "references": list(sample.captions), "score": score}
            for sample, one, score in zip(samples, found, scores.per_sample, strict=True)
        ]
        settings = {"score": "CIDEr-D", "decode": {"prompt": self.config.prompt, **vars(self.config.decode)}}
        extra, statistics = dict[str, float](), _statistics(scores)
        back = as_written(self.backbone, [sample.captions for sample in samples])
        pairs = (
            pair for own, sample in zip(back, samples, strict=True) for pair in zip(own, sample.captions, strict=True)
        )
        if self.metric.endswith(AS_WRITTEN) or any(a != b and _compared(a) != _compared(b) for a, b in pairs):
            again = metric.score(texts, back)
            extra[f"cider_d{AS_WRITTEN}"] = again.cider_d
            statistics[f"cider_d{AS_WRITTEN}"] = mean(again.per_sample)
        skipped = dict.fromkeys(("meteor", "spice"), "slow, hence only with task.java_metrics=true")
        if self.config.java_metrics:
            # by one process: Java takes a minute and gigabytes
            references = [sample.captions for sample in samples]
            ((more, skipped),) = batches.map(lambda texts: metric.optional_scores(texts, references), [texts])
            extra |= more
        if skipped:
            settings["skipped"] = skipped
        settings["intervals"] = "CIDEr-D: the n-grams' frequencies stay those of all references"
        return Evaluation(
            {**scores.corpus(), **extra},
            settings,
            predictions,
            statistics,
            [len(samples)],
            self.groupings(samples, [*scores.corpus()]),
        )

    def constants(self, train: Sequence[Sample]) -> dict[str, Any]:
        """The caption that scores most as the caption of every image."""
        return asdict(best_constant([*column(train, "captions")])) if train else {}

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """A constant caption."""
        if not constants:
            return Yardsticks()
        best = BestCaption(**constants)
        references = [list(sample.captions) for sample in samples]
        scores = metric.score([best.text] * len(samples), references).corpus()
        if (back := as_written(self.backbone, references)) != references:
            ((written,),) = as_written(self.backbone, [[best.text]])
            scores[f"cider_d{AS_WRITTEN}"] = metric.score([written] * len(samples), back).cider_d
        return Yardsticks({"constant_caption": Baseline(scores, of_constant(best))})


def _statistics(scores: metric.CaptionScores) -> dict[str, Statistic]:
    counts = torch.tensor(scores.bleu_counts, dtype=torch.double).numpy()  # (N, 10)

    def bleu(order: int) -> Statistic:
        return lambda drawn: metric.bleu_of((drawn @ counts).tolist())[order - 1]

    return {
        "cider_d": mean(scores.per_sample),
        "rouge_l": mean(scores.rouge_per_sample),
        **{f"bleu_{order}": bleu(order) for order in range(1, 5)},
    }


def _compared(caption: str) -> tuple[str, ...]:
    """What the scores see of a caption."""
    return tuple(tokenize(caption))
