"""The caption that scores best where every image gets the same one, by CIDEr-D.

A house style, or a subject that all images share, already earns much: a constant caption tells how much. Candidates are captions
that people wrote. The cost is bounded: `CANDIDATES` captions, the more frequent ones first, on `IMAGES` images, both drawn with a
seed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlatrain.metrics.caption import ORDER, SIGMA, Frequencies, grams_of
from vlatrain.metrics.ptb import tokenize

CANDIDATES = 200
IMAGES = 300


@dataclass(frozen=True, slots=True)
class BestCaption:
    """The best constant caption, and among what it was found.

    Attributes:
        text: the caption.
        tried: candidates.
        captions: different captions that there are.
        images: images on which they were tried.
        of: images that there are.
    """

    text: str
    tried: int
    captions: int
    images: int
    of: int


def best_constant(
    references: Sequence[Sequence[str]], candidates: int = CANDIDATES, images: int = IMAGES, seed: int = 0
) -> BestCaption:
    """The best of the captions of some images as the caption of each of them.

    Args:
        references: the captions of each image, at least one.
        candidates: the most captions that are tried; half of them are the most frequent ones, the others are drawn.
        images: the most images that they are tried on, which are drawn.
        seed: seed of the draws.
    """
    generator = random.Random(f"best constant {seed}")
    often = Counter(caption for captions in references for caption in captions)
    known = [caption for caption, _ in often.most_common()]
    tried = known[: candidates // 2] if len(known) > candidates else known
    tried = [*tried, *generator.sample(known[len(tried) :], min(candidates, len(known)) - len(tried))]
    some = references if len(references) <= images else generator.sample([*references], images)
    scores = constant_scores(tried, some)
    return BestCaption(tried[int(scores.argmax())], len(tried), len(known), len(some), len(references))


def constant_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D (C,), times 100, of each candidate as the caption of every image: `vlatrain.metrics.caption.score` to rounding.

    Args:
        candidates: C captions.
        references: the captions of each image.
    """
    grams = [[grams_of(tokenize(caption)) for caption in captions] for captions in references]
    frequencies = Frequencies.of(grams)
    share = np.array(
        [1 / len(captions) / len(grams) for captions in grams for _ in captions]
    )  # (R,) of a reference in the mean
    vectors = [frequencies.vectors(caption) for captions in grams for caption in captions]
    lengths = np.array([length for *_, length in vectors])  # (R,)
    places: dict[tuple[str, ...], list[int]] = {}  # by n-gram, the references that have it
    weights: dict[tuple[str, ...], list[float]] = {}
    norms: dict[tuple[str, ...], list[float]] = {}
    for place, (orders, own_norms, _) in enumerate(vectors):
        for order, norm in zip(orders, own_norms, strict=True):
            for gram, weight in order.items():
                if weight:
                    places.setdefault(gram, []).append(place)
                    weights.setdefault(gram, []).append(weight)
                    norms.setdefault(gram, []).append(norm)
    having = {gram: (np.array(places[gram]), np.array(weights[gram]), np.array(norms[gram])) for gram in places}
    scores = []
    for candidate in candidates:
        orders, own_norms, length = frequencies.vectors(grams_of(tokenize(candidate)))
        similarity = np.zeros(len(vectors))  # (R,)
        for order, own_norm in zip(orders, own_norms, strict=True):
            for gram, weight in order.items():
                if weight and gram in having:
                    known, others, other_norms = having[gram]
                    similarity[known] += np.minimum(weight, others) * others / (own_norm * other_norms)
        penalty = np.exp(-((length - lengths) ** 2) / (2 * SIGMA**2))
        scores.append(1000.0 / ORDER * math.fsum(similarity * penalty * share))
    return np.array(scores)
