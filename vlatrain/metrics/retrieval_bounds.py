"""What a retrieval score is to be compared with: chance below, and what the data lets anyone reach above.

Chance: every order of the gallery is as likely as any other. A query with m right items of n then has one among its first k with
probability 1 - C(n - m, k) / C(n, k); the rank of its first right one is (n + 1) / (m + 1) in the mean. Captions that are the same
text tie, which counts as a miss (`vlatrain.metrics.retrieval`): then the order is one of different texts, each with all its copies.

The best there is: captions that are the same text have the same score with every image. So of the images that share a caption only
one can be first in a search for it, and an image whose every caption others have too always finds theirs beside its own. Images
that are the same are not looked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def chance_recalls(positives: Sequence[int], gallery: int, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at each k of random orders, percent: `{"r@1": ..., "r@5": ..., "r@10": ...}`.

    Args:
        positives: of each query, how many right items the gallery has; 0 is no query.
        gallery: number of items.
        ks: how many of the first items are looked at.
    """
    queries = _queries(positives)
    total = queries.total()
    found = {k: sum(number * _within(k, right, gallery) for right, number in queries.items()) for k in ks}
    return {f"r@{k}": 100.0 * hits / total for k, hits in found.items()}


def chance_mean_rank(positives: Sequence[int], gallery: int) -> float:
    """Mean rank of the first right item in random orders; see `chance_recalls` for the arguments."""
    queries = _queries(positives)
    return sum(number * (gallery + 1) / (right + 1) for right, number in queries.items()) / queries.total()


def chance_of_texts(
    texts: Sequence[Hashable], text_to_image: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> tuple[dict[str, float], float]:
    """Recall at each k, percent, and mean rank of a search for texts, where equal ones cannot be told apart.

    For an image with q different texts, the first of them in random order is any of them, and each other text comes before all q
    with probability 1 / (q + 1). What comes before counts with all its copies, and so do the copies that other images have of it.

    Args:
        texts: T texts.
        text_to_image: (T,) index of each text's image.
        ks: how many of the first texts are looked at.
    """
    copies = Counter(texts)
    own: dict[int, Counter[Hashable]] = {}
    for text, image in zip(texts, text_to_image, strict=True):
        own.setdefault(image, Counter())[text] += 1
    # all that matters of an image: of its texts how often each occurs, and how often elsewhere
    alike = Counter(
        tuple(sorted((copies[text], copies[text] - n) for text, n in mine.items())) for mine in own.values()
    )
    sizes, most, total = Counter(copies.values()), max(ks), alike.total()
    hits, ranks = dict.fromkeys(ks, 0.0), 0.0
    for mine, images in alike.items():
        others = sizes - Counter(size for size, _ in mine)
        ahead = _copies_ahead(others, len(mine), most)
        for _, elsewhere in mine:
            for k in ks:
                hits[k] += images / len(mine) * sum(ahead[: max(0, k - elsewhere)])
        before = sum(size * number for size, number in others.items()) / (len(mine) + 1)
        ranks += images * (1 + before + sum(elsewhere for _, elsewhere in mine) / len(mine))
    return {f"r@{k}": 100.0 * found / total for k, found in hits.items()}, ranks / total


def chance_median_rank(positives: Sequence[int], gallery: int) -> int:
    """The least rank that is not exceeded in half of all random orders; see `chance_recalls` for the arguments."""
    queries = _queries(positives)
    low, high = 1, gallery
    while low < high:
        middle = (low + high) // 2
        reached = sum(number * _within(middle, right, gallery) for right, number in queries.items())
        low, high = (low, middle) if reached >= queries.total() / 2 else (middle + 1, high)
    return low


def best_ranks(texts: Sequence[Hashable], text_to_image: Sequence[int], images: int) -> tuple[Tensor, Tensor]:
    """The least ranks that any scores of images with texts could give, in both directions at once.

    They are reached together, at every k: by the score m - n for an image that has a text m times, of n times in all, and less for
    every other pair, with whatever breaks ties.

    Args:
        texts: T texts; equal ones cannot be told apart.
        text_to_image: (T,) index of each text's image.
        images: number of images I.

    Returns:
        (I,) image to text, 0 for an image without texts, and (T,) text to image, as `vlatrain.metrics.retrieval.ranks`.
    """
    owners: dict[Hashable, Counter[int]] = {}  # by text, how often each image has it
    for text, image in zip(texts, text_to_image, strict=True):
        owners.setdefault(text, Counter())[image] += 1
    by_image = [0] * images
    places: dict[tuple[Hashable, int], int] = {}
    for text, having in owners.items():
        total = having.total()
        # who has a text more often comes first in a search for it: then more of its copies are found
        for place, (image, copies) in enumerate(having.most_common(), start=1):
            places[text, image] = place
            rank = 1 + total - copies
            by_image[image] = min(rank, by_image[image] or rank)
    by_text = [places[text, image] for text, image in zip(texts, text_to_image, strict=True)]
    return torch.tensor(by_image, dtype=torch.long), torch.tensor(by_text, dtype=torch.long)


def shared(texts: Sequence[Hashable], text_to_image: Sequence[int]) -> tuple[int, int]:
    """How many texts other images have too, and how many images have such a text; see `best_ranks` for the arguments."""
    owners: dict[Hashable, set[int]] = {}
    for text, image in zip(texts, text_to_image, strict=True):
        owners.setdefault(text, set()).add(image)
    several = [image for text, image in zip(texts, text_to_image, strict=True) if len(owners[text]) > 1]
    return len(several), len(set(several))


def _queries(positives: Sequence[int]) -> Counter[int]:
    """How many queries have so many right items.

    Raises:
        ValueError: no query at all.
    """
    queries = Counter(right for right in positives if right)
    if not queries:
        raise ValueError("no query to rank: the gallery or the list of queries is empty")
    return queries


def _within(k: int, right: int, gallery: int) -> float:
    """Probability that one of so many right items is among the first k of a gallery in random order."""
    missed = 1.0
    for place in range(min(k, gallery)):
        missed *= max(0, gallery - right - place) / (gallery - place)
    return 1.0 - missed


def _copies_ahead(others: Counter[int], own: int, most: int) -> list[float]:
    """Probabilities (most,) that 0, 1, ... copies of other texts come before the first of so many own texts, in random order.

    Args:
        others: by number of copies, how many other texts have so many.
        own: number of different texts of the image.
        most: copies from which on nothing is asked.
    """
    # number of sets of other texts, by their texts and by their copies
    sets = [[0] * most for _ in range(most)]
    sets[0][0] = 1
    for size, number in others.items():
        added = [[0] * most for _ in range(most)]
        for chosen in range(min(number, (most - 1) // size) + 1):
            ways = math.comb(number, chosen)
            for count in range(most - chosen):
                for copies in range(most - chosen * size):
                    added[count + chosen][copies + chosen * size] += ways * sets[count][copies]
        sets = added
    found, total = [0.0] * most, others.total()
    for count in range(min(most, total + 1)):
        # that just this set comes first, and an own text behind it
        first = own / (own + total - count) / math.comb(own + total, count)
        for copies in range(most):
            found[copies] += first * sets[count][copies]
    return found
