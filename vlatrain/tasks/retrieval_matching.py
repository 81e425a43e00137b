"""Image-text retrieval by matching alone: a backbone without features scores each pair of an image and a text.

Kim et al., ViLT (ICML 2021), section 4.4: the score of an image with its text against those with wrong texts, by cross-entropy
(fifteen wrong ones, `task.negatives`). They are drawn from the batch.

Deviation: the score of a text with its image is compared with those of wrong images too, as otherwise nothing says that an image's
scores may not all be high, and a search for the images of a text compares just these. The same pairs serve both ways.

To search costs a pass for every pair, N x N for N images and texts, where features cost 2 N.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from vlatrain.backbones.base import Backbone, Context, Inputs, Matcher, Text, blank_text
from vlatrain.config import TaskConfig
from vlatrain.data.sample import Sample
from vlatrain.metrics import retrieval as metric
from vlatrain.tasks.base import Batches, Evaluation, group_index_of
from vlatrain.tasks.retrieval import (
    PAIRS,
    Negatives,
    Retrieval,
    RetrievalBatch,
    contrastive_loss,
    ranked,
    same_caption,
)
from vlatrain.tasks.retrieval_scores import BY_GROUP, evaluation

log = logging.getLogger("vlatrain")


class Matching(Retrieval):
    """Retrieval on a `Matcher` backbone."""

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        super().__init__(config, backbone, train)
        self.matcher = cast(Matcher, backbone)
        self._described = False

    @property
    def contrasts(self) -> bool:
        """Never: there are no features."""
        return False

    def negatives(self, ids: Tensor, group_index: Tensor, images: int) -> Negatives:
        """The pairs (P, 2) of a caption and an image that are scored in a step, right ones too."""
        return {"pairs": self.pairs_of(ids, group_index, images).nonzero()}

    def loss(self, batch: RetrievalBatch) -> Tensor:
        """Cross-entropy of the right pairs' scores among those of wrong ones, both ways."""
        text, group_index = batch["text"], batch["group_index"]
        context = self.matcher.image_context(batch["inputs"])
        caption, image = batch["pairs"].unbind(dim=1)  # (P,) each
        scores = self._scored(context, image, Text(text.ids[caption], text.mask[caption]))
        logits = scores.new_full((len(group_index), len(batch["ids"])), float("-inf"))  # (T, I)
        logits = logits.index_put((caption, image), scores)
        return contrastive_loss(logits, text.ids, group_index)

    def pairs_of(self, ids: Tensor, group_index: Tensor, images: int) -> Tensor:
        """Which pairs (T, I) are scored in a step: each caption with its image, and wrong ones drawn for each caption and image.

        Args:
            ids: (T, L) token ids of the captions.
            group_index: (T,) the captions' images.
            images: number of images I.
        """
        wrong = ~same_caption(ids, group_index, images)
        drawn = torch.rand(wrong.shape, device=ids.device).masked_fill(~wrong, -1.0)  # (T, I)
        found = group_index[:, None] == torch.arange(images, device=ids.device)
        for dim in (0, 1):  # wrong captions of each image, wrong images of each caption
            best = drawn.topk(min(self.config.negatives, drawn.shape[dim]), dim=dim).indices
            found = found | (torch.zeros_like(wrong).scatter(dim, best, True) & wrong)
        return found

    def scores(self, inputs: Inputs, texts: Sequence[Text]) -> Tensor:
        """Scores (B, T) of images with texts, which come in several parts. A part is scored at a time with one of the images."""
        context = self.matcher.image_context(inputs)
        rows = []
        for row in range(len(inputs["pixels"])):
            parts = [
                self._scored(context, torch.full((len(text.ids),), row, device=text.ids.device), text) for text in texts
            ]
            rows.append(torch.cat(parts))
        return torch.stack(rows)

    def in_parts(self, texts: Sequence[str]) -> list[Text]:
        """Texts as `scores` takes them."""
        length, device = self.longest("text"), self.backbone.device
        return [self.backbone.text(texts[i : i + PAIRS], length).to(device) for i in range(0, len(texts), PAIRS)]

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """R@1/5/10 and median rank, both directions, from the scores of all pairs."""
        captions = [caption for sample in samples for caption in sample.captions]
        if not self._described:
            self._described = True
            log.info(
                "Retrieval by matching: %s images x %s texts are %s pairs, a pass each (data.eval_size takes fewer)",
                f"{len(samples):,}", f"{len(captions):,}", f"{len(samples) * len(captions):,}",
            )  # fmt: skip
        texts = self.in_parts(captions)
        found = batches(samples, self.images, lambda batch: self.scores(batch["inputs"], texts).cpu())
        scores = torch.cat([*found])
        group_index = group_index_of([len(sample.captions) for sample in samples])
        ranks = metric.ranks_of_scores(scores, group_index)
        best = scores.argmax(dim=1).tolist(), scores.argmax(dim=0).tolist()
        return evaluation(samples, ranks, best, {"scored": "pairs"}, self.groupings(samples, BY_GROUP))

    def best_images(self, text: str, samples: Sequence[Sample], batches: Batches, k: int) -> list[tuple[int, float]]:
        """The images with the highest scores."""
        asked = self.in_parts([text])
        found = batches(samples, self.images, lambda batch: self.scores(batch["inputs"], asked)[:, 0])
        return ranked(range(len(samples)), torch.cat([*found]))[:k]

    def best_texts(
        self, samples: Sequence[Sample], texts: Sequence[str], batches: Batches, k: int
    ) -> Iterator[list[tuple[int, float]]]:
        """The texts with the highest scores."""
        asked = self.in_parts(texts)
        for scores in batches(samples, self.images, lambda batch: self.scores(batch["inputs"], asked)):
            yield from (ranked(range(len(texts)), row)[:k] for row in scores)

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """As many captions an image as `lengths` says, and as many pairs as there can be."""
        texts, negatives = self.lengths["texts"] * batch_size, self.config.negatives
        pairs = min(batch_size * texts, texts * (1 + negatives) + batch_size * negatives)
        row = torch.arange(pairs, device=device) % batch_size
        context = self.matcher.image_context(self.backbone.blank(batch_size, device))
        return self._scored(context, row, blank_text(pairs, self.lengths["captions"], device)).mean()

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """A part of the texts with an image."""
        context = self.matcher.image_context(self.backbone.blank(batch_size, device))
        row = torch.zeros(PAIRS, dtype=torch.long, device=device)
        self._scored(context, row, blank_text(PAIRS, self.lengths["captions"], device))

    def _scored(self, context: Context, image: Tensor, text: Text) -> Tensor:
        """Scores (N,) of texts with the images in these rows (N,) of a context."""
        return self.matcher.pair_scores(self.backbone.select_rows(context, image), text)
