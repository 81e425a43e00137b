"""Image-text retrieval: contrastive training, and matching where the backbone has a head or adapters for it.

Contrastive loss: Radford et al., CLIP (2021). A caption's image may have other captions in the batch; they are no
negatives of the image, and neither is an identical caption of another image. A backbone that was trained with the sigmoid loss
(`contrast: sigmoid` in its description) is adapted with it: Zhai et al., SigLIP (2023). Matching with hard negatives drawn by
similarity: Li et al., ALBEF (2021) and BLIP (2022). A backbone whose matching gives one score a pair (CLIP with adapters that read
the image) learns to put the pair above its hard negatives: Burges et al., "Learning to Rank using Gradient Descent" (ICML 2005).
Negatives come from the process's own pass, or from as many samples of a step as `task.negatives_per_step` says
(`vlatrain.training.contrast`): then the contrast is with all of these, while matching draws its hard negatives from the pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from vlatrain.backbones.base import Backbone, Biased, Embedder, Text, blank_text
from vlatrain.config import TaskConfig
from vlatrain.data.sample import Sample
from vlatrain.metrics import retrieval as metric
from vlatrain.tasks.base import Batch, Batches, Evaluation, ImageBatch, Task, group_index_of, similarity_scale
from vlatrain.tasks.lengths import Use
from vlatrain.tasks.looks import reading, tokens_of
from vlatrain.tasks.retrieval_scores import BY_GROUP, evaluation, yardsticks
from vlatrain.tasks.yardsticks import Yardsticks

PAIRS = 64  # image-text pairs that are matched at a time


class TextBatch(Batch):
    """Captions.

    Attributes:
        text: (T, L) the captions.
    """

    text: Text


class Negatives(TypedDict, total=False):
    """What a matching loss must know of wrong pairs.

    Attributes:
        wrong: which captions and images have wrong partners, and which pairs are right, see `with_wrong_partner`.
        pairs: (P, 2) a caption and an image each, right and wrong ones.
    """

    wrong: dict[str, Tensor]
    pairs: Tensor


class RetrievalBatch(ImageBatch, Negatives):
    """Images and captions.

    Attributes:
        text: (T, L) the captions.
        group_index: (T,) the captions' images.
    """

    text: Text
    group_index: Tensor


class PlacedBatch(ImageBatch):
    """Images and where they stand.

    Attributes:
        rows: their places among all images.
    """

    rows: Sequence[int]


class Retrieval(Task):
    """Retrieval on an `Embedder` backbone."""

    in_batch_negatives = True

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        super().__init__(config, backbone)
        self.embedder = cast(Embedder, backbone)

    @property
    def contrasts(self) -> bool:
        """Always."""
        return True

    def uses(self) -> list[Use]:
        """Captions, which must tell images apart."""

        def left(texts: Sequence[str]) -> list[tuple[int, ...]]:
            return tokens_of(self.backbone, texts, self.longest("text"))

        lost = "no word is left of the captions of {}"
        return [Use("captions", "text", lambda one: one.captions, reading(self.backbone), lost=lost, left=left)]

    def images(self, samples: Sequence[Sample]) -> ImageBatch:
        """Images."""
        return {"ids": [sample.id for sample in samples], "inputs": self.inputs(samples)}

    def texts(self, samples: Sequence[Sample]) -> TextBatch:
        """Every caption of the samples."""
        captions = [caption for sample in samples for caption in sample.captions]
        return {"ids": [sample.id for sample in samples], "text": self.backbone.text(captions, self.longest("text"))}

    def collate(self, samples: Sequence[Sample]) -> RetrievalBatch:
        """Images and all their captions, each image's one after the other."""
        group_index = group_index_of([len(sample.captions) for sample in samples])
        text = self.texts(samples)["text"]
        negatives = self.negatives(text.ids, group_index, len(samples))
        return {**self.images(samples), "text": text, "group_index": group_index, **negatives}

    def negatives(self, ids: Tensor, group_index: Tensor, images: int) -> Negatives:
        """What a matching loss must know of wrong pairs. Found with the batch, as a GPU would be waited for to count them.

        Args:
            ids: (T, L) token ids of the captions.
            group_index: (T,) the captions' images.
            images: number of images I.
        """
        if not (self.config.matching and self.embedder.matches):
            return {}
        return {"wrong": with_wrong_partner(ids, group_index, images)}

    def loss(self, batch: RetrievalBatch) -> Tensor:
        """Contrastive loss, plus the matching loss where the backbone matches and `task.matching` is on."""
        images, texts, states = self.embed(batch)
        cosine = metric.similarity(texts, images)  # (T, I)
        loss = self.contrast(cosine, batch["text"].ids, batch["group_index"])
        matching = self.matching_loss(batch, cosine.detach(), states)
        return loss if matching is None else loss + matching

    def embed(self, batch: RetrievalBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Features of a training batch's images, (I, D) or (I, V, D), and captions, (T, D), and the images' states."""
        images, states = self.embedder.image_features(batch["inputs"])
        return images, self.embedder.text_features(batch["text"]), states

    def contrast(self, cosine: Tensor, ids: Tensor, group_index: Tensor) -> Tensor:
        """The contrastive loss that the backbone was trained with: a scalar, the mean over the images.

        Args:
            cosine: (T, I) similarities of captions and images, fp32.
            ids: (T, L) numbers that are the same for the same captions only: their token ids.
            group_index: (T,) the captions' images.
        """
        return self._contrast(cosine * self._scale(), ids, group_index)

    def matching_loss(self, batch: RetrievalBatch, cosine: Tensor, states: Tensor) -> Tensor | None:
        """The matching loss of a training batch, with hard negatives from it; None where matching is off, or has no wrong pairs.

        Args:
            batch: the batch.
            cosine: (T, I) similarities of its captions and images, without a graph.
            states: (I, S, width) states of its images.
        """
        if not (self.config.matching and self.embedder.matches and len(states) > 1):
            return None
        similarity = cosine * self._scale().detach()
        return self._matching_loss(similarity, states, batch["text"], batch["group_index"], batch["wrong"])

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """R@1/5/10 and median rank, both directions; re-ranked by matching if `task.rerank` says so."""
        images = torch.cat([*batches(samples, self.images, self._image_features)])
        texts = torch.cat([*batches(samples, self.texts, self._text_features)])
        group_index = group_index_of([len(sample.captions) for sample in samples]).to(images.device)
        k = min(self.config.rerank, len(images), len(texts)) if self.embedder.matches else 0
        ranks = metric.ranks(images, texts, group_index, over=batches.map)
        if k:
            ranks, best = self._reranked(samples, batches, images, texts, ranks, k)
        else:
            text = metric.top_k(images, texts, 1, over=batches.map)[1][:, 0].tolist()
            best = text, metric.top_k(texts, images, 1, over=batches.map)[1][:, 0].tolist()
        return evaluation(samples, ranks, best, {"rerank": k}, self.groupings(samples, BY_GROUP))

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """As many captions an image as `lengths` says. The hard negatives depend on values: here they are the pairs themselves."""
        each = self.lengths["texts"]
        text = blank_text(each * batch_size, self._padded, device)
        group_index = torch.arange(batch_size, device=device).repeat_interleave(each)
        image_features, states = self.embedder.image_features(self.backbone.blank(batch_size, device))
        logits = metric.similarity(self.embedder.text_features(text), image_features) * self._scale()
        loss = self._contrast(logits, text.ids, group_index)
        if self.config.matching and self.embedder.matches:
            # (2 T + B,): the pairs, of each caption a hard wrong image, of each image a hard wrong caption
            image = torch.cat([group_index, group_index, torch.arange(batch_size, device=device)])
            matched = blank_text(len(image), self._padded, device)
            loss = loss + self.embedder.match(states[image], matched).mean()
        return loss

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """Features of images and texts, and pairs that are matched where the best are ordered by that."""
        _, states = self.embedder.image_features(self.backbone.blank(batch_size, device))
        self.embedder.text_features(blank_text(self.lengths["texts"] * batch_size, self._padded, device))
        if self.config.rerank and self.embedder.matches:
            pairs = states[:1].expand(PAIRS, -1, -1)
            self.embedder.match(pairs, blank_text(PAIRS, self._padded, device))

    @property
    def _padded(self) -> int:
        """Tokens of the longest captions with their padding."""
        return self.backbone.padded_to(self.lengths["captions"])

    def pairs(self, batch: RetrievalBatch) -> tuple[Tensor, Tensor]:
        """Features (B, D) of a training batch's images with one caption each, and of these: what a cache of samples is filled
        with."""
        return self.embedder.image_features(batch["inputs"])[0], self.embedder.text_features(batch["text"])

    def best_images(self, text: str, samples: Sequence[Sample], batches: Batches, k: int) -> list[tuple[int, float]]:
        """The images with the most similar features; re-ranked by matching if `task.rerank` says so."""
        features = torch.cat([*batches(samples, self.images, self._image_features)])
        query = self.embedder.text_features(self._text([text]))
        best = metric.top_k(query, features, k)[1][0].tolist()
        if not (self.config.rerank and self.embedder.matches):
            return ranked(best, metric.similarity(query, features[best])[0])

        def matched(batch: ImageBatch) -> Tensor:
            states = self.embedder.image_features(batch["inputs"])[1]
            return self.match_scores(states, self._text([text] * len(states)))

        return ranked(best, torch.cat([*batches([samples[place] for place in best], self.images, matched)]))

    def best_texts(
        self, samples: Sequence[Sample], texts: Sequence[str], batches: Batches, k: int
    ) -> Iterator[list[tuple[int, float]]]:
        """The texts with the most similar features; re-ranked by matching if `task.rerank` says so. Each text is encoded once."""
        captioned = [replace(sample, captions=(text,)) for sample in samples[:1] for text in texts]
        features = torch.cat([*batches(captioned, self.texts, self._text_features)])

        def best(batch: ImageBatch) -> list[list[tuple[int, float]]]:
            images, states = self.embedder.image_features(batch["inputs"])
            rows = range(len(batch["ids"]))
            return [self._best_texts(images[row, None], states[row, None], texts, features, k) for row in rows]

        for found in batches(samples, self.images, best):
            yield from found

    def _best_texts(
        self, image: Tensor, states: Tensor, texts: Sequence[str], features: Tensor, k: int
    ) -> list[tuple[int, float]]:
        """Of one image with features (1, D) or (1, V, D) and states (1, S, width)."""
        best = metric.top_k(image, features, k)[1][0].tolist()
        if not (self.config.rerank and self.embedder.matches):
            return ranked(best, metric.similarity(image, features[best])[0])
        asked = self._text([texts[place] for place in best])
        return ranked(best, self.match_scores(states.expand(len(best), -1, -1), asked))

    def _image_features(self, batch: ImageBatch) -> Tensor:
        return self.embedder.image_features(batch["inputs"])[0]

    def _text_features(self, batch: TextBatch) -> Tensor:
        return self.embedder.text_features(batch["text"])

    def _text(self, texts: Sequence[str]) -> Text:
        return self.backbone.text(texts, self.longest("text")).to(self.backbone.device)

    def match_scores(self, states: Tensor, text: Text) -> Tensor:
        """Matching log-odds or scores (N,) of image states (N, S, width) and texts (N, L), a few pairs at a time."""
        chunks = []
        for start in range(0, len(text.ids), PAIRS):
            part = slice(start, start + PAIRS)
            logits = self.embedder.match(states[part], Text(text.ids[part], text.mask[part]))
            chunks.append(logits if logits.dim() == 1 else logits[:, 1] - logits[:, 0])
        return torch.cat(chunks)

    def _contrast(self, logits: Tensor, ids: Tensor, group_index: Tensor) -> Tensor:
        """The loss of image-text contrast that the backbone was trained with."""
        if self.backbone.config.tasks[self.backbone.task].contrast == "sigmoid":
            return sigmoid_loss(logits + cast(Biased, self.backbone).logit_bias(), ids, group_index)
        return contrastive_loss(logits, ids, group_index)

    def _scale(self) -> Tensor:
        return similarity_scale(self.config, self.backbone)

    def _matching_loss(
        self, similarity: Tensor, states: Tensor, text: Text, group_index: Tensor, wrong: dict[str, Tensor]
    ) -> Tensor:
        """Every caption with its image, with a hard wrong image, and every image with a hard wrong caption.

        Logits say which pairs belong together; scores put a wrong pair below the right one of its caption, or of its image.

        Args:
            similarity: (T, I) scaled similarities.
            states: (I, S, width) states of the images.
            text: (T, L) the captions.
            group_index: (T,) the captions' images.
            wrong: what `with_wrong_partner` found.
        """
        positive = same_caption(text.ids, group_index, len(states))  # (T, I)
        # one that is no number makes no choice; the loop says so with the loss, which is none then either
        odds = similarity.nan_to_num().masked_fill(positive, float("-inf"))
        captions, others = wrong["captions"], wrong["images"]
        images = [group_index, drawn(odds[captions].softmax(dim=1)), others]
        texts = [
            torch.arange(len(group_index), device=group_index.device),
            captions,
            drawn(odds.T[others].softmax(dim=1)),
        ]
        image, caption = torch.cat(images), torch.cat(texts)
        logits = self.embedder.match(states[image], Text(text.ids[caption], text.mask[caption]))
        if logits.dim() == 1:
            below = logits[len(group_index) :]
            right = torch.cat([captions, wrong["right"]])
            return softplus(below - logits[right]).sum() / max(1, len(below))
        labels = torch.zeros(len(image), dtype=torch.long, device=image.device)
        labels[: len(group_index)] = 1
        return cross_entropy(logits, labels)

    def _reranked(
        self,
        samples: Sequence[Sample],
        batches: Batches,
        images: Tensor,
        texts: Tensor,
        ranks: tuple[Tensor, Tensor],
        k: int,
    ) -> tuple[tuple[Tensor, Tensor], tuple[list[int], list[int]]]:
        """Ranks, and each image's best text and each text's best image, with the best k of both directions ordered by matching.

        One pass over the images serves both directions.
        """
        captions = [caption for sample in samples for caption in sample.captions]
        group_index = group_index_of([len(sample.captions) for sample in samples]).tolist()
        by_image = metric.top_k(images, texts, k, over=batches.map)[1]  # (I, k)
        by_text = metric.top_k(texts, images, k, over=batches.map)[1]  # (T, k)

        def placed(numbered: Sequence[tuple[int, Sample]]) -> PlacedBatch:
            return {**self.images([sample for _, sample in numbered]), "rows": [row for row, _ in numbered]}

        def matched(batch: PlacedBatch) -> list[Tensor]:
            """For each image the scores (k + A,) with its best texts, and with the A texts whose best k include it."""
            scores = []
            for row, state in zip(batch["rows"], self.embedder.image_features(batch["inputs"])[1], strict=True):
                asked = (by_text == row).any(dim=1).nonzero()[:, 0]
                wanted = self._text([captions[i] for i in [*by_image[row].tolist(), *asked.tolist()]])
                scores.append(self.match_scores(state.expand(len(wanted.ids), *state.shape), wanted))
            return scores

        image_scores = torch.empty(by_image.shape, device=images.device)
        text_scores = torch.empty(by_text.shape, device=images.device)
        found = (scores for some in batches([*enumerate(samples)], placed, matched) for scores in some)
        for row, scores in enumerate(found):
            image_scores[row] = scores[:k]
            text_scores[by_text == row] = scores[k:]  # one place a text, in the order of the texts
        own: list[list[int]] = [[] for _ in samples]
        for text_row, image_row in enumerate(group_index):
            own[image_row].append(text_row)
        best = tuple(
            places.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0].tolist()
            for places, scores in ((by_image, image_scores), (by_text, text_scores))
        )
        to_text = metric.reranked(ranks[0], by_image, image_scores, own)
        to_image = metric.reranked(ranks[1], by_text, text_scores, [[image] for image in group_index])
        return (to_text, to_image), (best[0], best[1])

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """Random orders, and the best that captions which several images share leave."""
        # what the model cannot tell apart: texts of the same tokens
        read = tokens_of(self.backbone, [text for one in samples for text in one.captions], self.longest("text"))
        return yardsticks(samples, read)


def ranked(places: Sequence[int], scores: Tensor) -> list[tuple[int, float]]:
    """Places with their scores (N,), best first."""
    return sorted(zip(places, scores.tolist(), strict=True), key=lambda one: -one[1])


def same_caption(ids: Tensor, group_index: Tensor, images: int) -> Tensor:
    """Which images (T, I) are no negatives of a caption: its own, and those that have the same caption word for word.

    Args:
        ids: (T, L) token ids.
        group_index: (T,) the captions' images.
        images: number of images I.
    """
    equal = (ids[:, None] == ids[None]).all(dim=-1)  # (T, T)
    return equal.new_zeros((len(ids), images), dtype=torch.long).index_add(1, group_index, equal.long()) > 0


def with_wrong_partner(ids: Tensor, group_index: Tensor, images: int) -> dict[str, Tensor]:
    """Who has a wrong partner in a batch.

    Args:
        ids: (T, L) token ids of the captions.
        group_index: (T,) the captions' images.
        images: number of images I.

    Returns:
        `captions` (C,) and `images` (J,) that have one, and for each of these images its first caption, `right` (J,).
    """
    wrong = ~same_caption(ids, group_index, images)  # (T, I)
    having = wrong.any(dim=0).nonzero()[:, 0]
    right = (group_index == having[:, None]).int().argmax(dim=1)
    return {"captions": wrong.any(dim=1).nonzero()[:, 0], "images": having, "right": right}


def drawn(odds: Tensor) -> Tensor:
    """One column (N,) of each row of odds (N, M), as `torch.multinomial` draws it, which waits for the device to check them."""
    return (odds / torch.empty_like(odds).exponential_()).argmax(dim=1)


def contrastive_loss(logits: Tensor, ids: Tensor, group_index: Tensor) -> Tensor:
    """Symmetric InfoNCE over pairs of a caption and its image, other positives left out of both softmaxes.

    Args:
        logits: (T, I) scaled similarities, fp32.
        ids: (T, L) token ids of the captions.
        group_index: (T,) the captions' images.
    """
    captions = torch.arange(len(group_index), device=group_index.device)
    positive = same_caption(ids, group_index, logits.shape[1])
    to_image = logits.masked_fill(
        positive & (group_index[:, None] != torch.arange(logits.shape[1], device=group_index.device)), float("-inf")
    )
    pair = logits.T[group_index]  # (T, T): row t is caption t's image against every caption
    to_text = pair.masked_fill(positive.T[group_index] & (captions[:, None] != captions), float("-inf"))
    losses = cross_entropy(to_image, group_index, reduction="none") + cross_entropy(to_text, captions, reduction="none")
    return (losses * _share(group_index, logits.shape[1])).sum() / 2


def sigmoid_loss(logits: Tensor, ids: Tensor, group_index: Tensor) -> Tensor:
    """Of each caption the log-losses of belonging to its image and to no other, added up; other positives are left out.

    Args:
        logits: (T, I) scaled similarities with the bias, fp32.
        ids: (T, L) token ids of the captions.
        group_index: (T,) the captions' images.
    """
    own = group_index[:, None] == torch.arange(logits.shape[1], device=group_index.device)  # (T, I)
    counted = own | ~same_caption(ids, group_index, logits.shape[1])
    losses = softplus(torch.where(own, -logits, logits)) * counted
    return (losses.sum(dim=1) * _share(group_index, logits.shape[1])).sum()


def _share(group_index: Tensor, images: int) -> Tensor:
    """Weights (T,) of captions in a mean over the images of the means over their captions."""
    captions = torch.zeros(images, device=group_index.device).index_add(
        0, group_index, torch.ones_like(group_index, dtype=torch.float)
    )
    return 1 / captions[group_index] / images
