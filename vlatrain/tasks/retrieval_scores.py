"""What ranks of images and texts come to: scores, predictions in both directions, and what the scores are compared with."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlatrain.data.sample import Sample
from vlatrain.metrics import retrieval as metric
from vlatrain.metrics import retrieval_bounds as bounds
from vlatrain.metrics.bootstrap import Statistic, mean_of, median, ratio
from vlatrain.tasks.base import Evaluation, group_index_of
from vlatrain.tasks.yardsticks import Baseline, Grouping, Yardsticks

DIRECTIONS = ("image_to_text", "text_to_image")
KS = (1, 5, 10)
RECALLS = tuple(f"{direction}_r{k}" for direction in DIRECTIONS for k in KS)
BY_GROUP = ("mean_recall", *RECALLS)  # the scores that are given for groups of images


def evaluation(
    samples: Sequence[Sample],
    ranks: tuple[Tensor, Tensor],
    best: tuple[Sequence[int], Sequence[int]],
    settings: Mapping[str, Any],
    groupings: Mapping[str, Grouping],
) -> Evaluation:
    """What ranks in both directions come to.

    Args:
        samples: I images with their T captions.
        ranks: (I,) image to text and (T,) text to image.
        best: of each image the place of the best caption, and of each caption that of the best image.
        settings: what the ranks depend on.
        groupings: the images in groups.
    """
    counts = [len(sample.captions) for sample in samples]
    return Evaluation(
        scores_of(ranks),
        {"score": "R@1", **settings, "images": len(samples), "texts": sum(counts)},
        [*_texts_found(samples, ranks[0], best[0]), *_images_found(samples, ranks[1], best[1])],
        statistics_of(ranks, group_index_of(counts)),
        [len(samples)],
        groupings,
    )


def yardsticks(samples: Sequence[Sample], read: Sequence[Hashable]) -> Yardsticks:
    """Random orders, and the best that captions which several images share leave.

    Args:
        samples: images with their captions.
        read: of each caption what the model reads; equal ones it cannot tell apart.
    """
    counts = [len(sample.captions) for sample in samples]
    images, texts = len(samples), sum(counts)
    owners = group_index_of(counts).tolist()
    sharing, sharers = bounds.shared(read, owners)
    to_text, mean_rank = bounds.chance_of_texts(read, owners, KS)
    to_image = bounds.chance_recalls([1] * texts, images, KS)
    chance: dict[str, float] = {}
    for direction, recalls in zip(DIRECTIONS, (to_text, to_image), strict=True):
        chance |= {f"{direction}_{name.replace('@', '')}": value for name, value in recalls.items()}
    chance["mean_recall"] = sum(chance.values()) / len(chance)
    chance["image_to_text_mean_rank"] = mean_rank
    chance["text_to_image_mean_rank"] = bounds.chance_mean_rank([1] * texts, images)
    chance["text_to_image_median_rank"] = bounds.chance_median_rank([1] * texts, images)
    if not sharing:  # else it has no formula
        chance["image_to_text_median_rank"] = bounds.chance_median_rank(counts, texts)
    baselines = {"chance": Baseline(chance, f"{images:,} images and {texts:,} texts in random order")}
    if not sharing:
        return Yardsticks(baselines)
    best = scores_of(bounds.best_ranks(read, owners, images))
    most = ", ".join(f"{name} {best[name]:.1f} %" for name in BY_GROUP if best[name] < 100)
    said = (
        f"{sharing:,} of {texts:,} captions are those of other images too ({sharers:,} of {images:,} images have such), and in a "
        f"search by them only one image can be first: no score exceeds {most or '100 %'}"
    )
    facts = {"shared_captions": {"captions": sharing, "images": sharers}}
    return Yardsticks(baselines, {name: best[name] for name in BY_GROUP}, facts, [said])


def scores_of(ranks: tuple[Tensor, Tensor]) -> dict[str, float]:
    """R@1/5/10 in both directions, their mean, and median ranks, from the ranks (I,) image to text and (T,) text to image."""
    scores: dict[str, float] = {}
    for direction, found in zip(DIRECTIONS, ranks, strict=True):
        recalls = metric.recalls(found, KS)
        scores |= {f"{direction}_{name.replace('@', '')}": value for name, value in recalls.items()}
    scores["mean_recall"] = sum(scores.values()) / len(scores)  # of all six, as the field reports it
    for direction, found in zip(DIRECTIONS, ranks, strict=True):
        scores[f"{direction}_median_rank"] = metric.median_rank(found)
    return scores


def statistics_of(ranks: tuple[Tensor, Tensor], group_index: Tensor) -> dict[str, Statistic]:
    """The same scores as functions of how often each image was drawn, with all its texts; the gallery stays as it is.

    Args:
        ranks: (I,) image to text and (T,) text to image.
        group_index: (T,) the texts' images.
    """
    by_image, by_text = (found.cpu() for found in ranks)
    owners = group_index.cpu()
    images = torch.arange(len(by_image))
    found: dict[str, Statistic] = {}
    medians: dict[str, Statistic] = {}
    for direction, own, image in zip(DIRECTIONS, (by_image, by_text), (images, owners), strict=True):
        image, own = image[own > 0], own[own > 0]
        queries = torch.bincount(image, minlength=len(by_image))  # (I,)
        for k in KS:
            hits = torch.bincount(image[own <= k], minlength=len(by_image))
            found[f"{direction}_r{k}"] = ratio(100.0 * hits.numpy(), queries.numpy())
        medians[f"{direction}_median_rank"] = median(own.numpy(), image.numpy())
    return {**found, "mean_recall": mean_of([*found.values()]), **medians}


def _texts_found(samples: Sequence[Sample], ranks: Tensor, best: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Of each image the best caption."""
    captions = [caption for sample in samples for caption in sample.captions]
    for sample, place, rank in zip(samples, best, ranks.tolist(), strict=True):
        yield {
            "id": sample.id,
            "direction": DIRECTIONS[0],
            "prediction": captions[place],
            "references": list(sample.captions),
            "rank": rank,
            "score": float(rank == 1) * 100,
        }


def _images_found(samples: Sequence[Sample], ranks: Tensor, best: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Of each caption the best image, by its id."""
    asked = ((sample, caption) for sample in samples for caption in sample.captions)
    for (sample, caption), place, rank in zip(asked, best, ranks.tolist(), strict=True):
        yield {
            "id": sample.id,
            "direction": DIRECTIONS[1],
            "query": caption,
            "prediction": samples[place].id,
            "references": [sample.id],
            "rank": rank,
            "score": float(rank == 1) * 100,
        }
