"""Chance and the best there is, against every order that there can be."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from vlatrain.metrics import retrieval as metric
from vlatrain.metrics.retrieval_bounds import (
    best_ranks,
    chance_mean_rank,
    chance_median_rank,
    chance_of_texts,
    chance_recalls,
    shared,
)


@pytest.mark.parametrize("positives", [[1] * 3, [2, 1, 0], [3, 3, 2], [6, 1]])
def test_chance_is_the_mean_over_all_orders(positives: list[int]) -> None:
    gallery = 6
    ranks = [
        min(order.index(item) for item in range(right)) + 1
        for right in positives
        if right
        for order in itertools.permutations(range(gallery))
    ]
    found = chance_recalls(positives, gallery, ks=(1, 2, 5, 10))
    for k in (1, 2, 5, 10):
        assert found[f"r@{k}"] == pytest.approx(100 * sum(rank <= k for rank in ranks) / len(ranks)), k
    assert chance_mean_rank(positives, gallery) == pytest.approx(statistics.fmean(ranks))
    assert chance_median_rank(positives, gallery) == statistics.median_low(ranks)


@pytest.mark.parametrize(
    ("texts", "owners"),
    [
        ("aab", [0, 1, 2]),
        ("aabbcd", [0, 1, 0, 1, 1, 2]),
        ("aaabbbc", [0, 0, 1, 1, 2, 3, 0]),
        ("abcde", [0, 0, 1, 2, 2]),
        ("aaaa", [0, 0, 1, 2]),
    ],
)
def test_chance_of_equal_texts_is_the_mean_over_all_orders_of_different_ones(texts: str, owners: list[int]) -> None:
    kinds = sorted(set(texts))
    found: list[int] = []
    for order in itertools.permutations(range(len(kinds))):
        scores = torch.tensor([[float(order[kinds.index(text)]) for text in texts]] * (max(owners) + 1))
        found += metric.ranks_of_scores(scores, torch.tensor(owners))[0].tolist()
    recalls, mean_rank = chance_of_texts(texts, owners, ks=(1, 2, 3, 5, 10))
    for k in (1, 2, 3, 5, 10):
        assert recalls[f"r@{k}"] == pytest.approx(100 * sum(rank <= k for rank in found) / len(found)), k
    assert mean_rank == pytest.approx(statistics.fmean(found))


def test_chance_of_different_texts_is_that_of_their_numbers() -> None:
    owners = [image for image, count in enumerate([1, 5, 2, 3] * 30) for _ in range(count)]
    recalls, mean_rank = chance_of_texts(range(len(owners)), owners)
    assert recalls == pytest.approx(chance_recalls([1, 5, 2, 3] * 30, len(owners)))
    assert mean_rank == pytest.approx(chance_mean_rank([1, 5, 2, 3] * 30, len(owners)))


def test_chance_on_the_usual_sizes() -> None:
    """Flickr30k's test: 1,000 images with five captions each."""
    to_text = chance_recalls([5] * 1000, 5000)
    expected = {k: 100 * (1 - math.comb(4995, k) / math.comb(5000, k)) for k in (1, 5, 10)}
    assert to_text == pytest.approx({f"r@{k}": value for k, value in expected.items()})
    assert expected[1] == pytest.approx(0.1)
    assert chance_recalls([1] * 5000, 1000) == pytest.approx({"r@1": 0.1, "r@5": 0.5, "r@10": 1.0})
    assert (chance_mean_rank([1] * 5000, 1000), chance_median_rank([1] * 5000, 1000)) == (500.5, 500)
    with pytest.raises(ValueError, match="no query"):
        chance_recalls([0], 3)


def values(ranks: tuple[torch.Tensor, torch.Tensor]) -> list[float]:
    """Everything that is scored, higher is better."""
    found = []
    for own in ranks:
        found += [*metric.recalls(own, (1, 2, 3, 5, 10)).values(), -metric.median_rank(own)]
    return found


def ranks_by(scores: dict[tuple[str, int], float], texts: str, owners: list[int], images: int) -> list[float]:
    """What a model scores whose score depends on image and text alone."""
    pairs = torch.tensor([[scores[text, image] for text in texts] for image in range(images)])  # (I, T)
    return values(metric.ranks_of_scores(pairs, torch.tensor(owners)))


@pytest.mark.parametrize(
    ("texts", "owners"),
    [
        ("aab", [0, 1, 2]),  # two images share their only caption
        ("aabb", [0, 1, 0, 1]),  # both of two
        ("aaba", [0, 0, 0, 1]),  # one image has it twice
        ("abab", [0, 0, 1, 1]),
        ("aaab", [0, 1, 2, 2]),  # one of three has another one, too
    ],
)
def test_no_scores_are_better_and_some_are_as_good(texts: str, owners: list[int]) -> None:
    """Every strict order of all scores of an image with a text."""
    images = max(owners) + 1
    pairs = [(text, image) for text in sorted(set(texts)) for image in range(images)]
    best = values(best_ranks(texts, owners, images))
    reached = False
    for order in itertools.permutations(range(len(pairs))):
        found = ranks_by(dict(zip(pairs, map(float, order), strict=True)), texts, owners, images)
        assert all(one <= most + 1e-9 for one, most in zip(found, best, strict=True)), order
        reached = reached or found == pytest.approx(best)
    by_rule = {
        (text, image): _own(texts, owners, text, image) + 0.001 * number for number, (text, image) in enumerate(pairs)
    }
    assert ranks_by(by_rule, texts, owners, images) == pytest.approx(best)


def _own(texts: str, owners: list[int], text: str, image: int) -> float:
    """m - n, as `best_ranks` says; far less for a text that the image does not have."""
    copies = sum(own == image for one, own in zip(texts, owners, strict=True) if one == text)
    return copies - texts.count(text) if copies else -100.0


@pytest.mark.parametrize("seed", range(4))
def test_the_rule_reaches_it_in_larger_data(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    owners = torch.randint(6, (20,), generator=generator).sort().values.tolist()
    texts = "".join("abcdefgh"[int(torch.randint(8, (), generator=generator))] for _ in owners)
    pairs = [(text, image) for text in sorted(set(texts)) for image in range(6)]
    by_rule = {pair: _own(texts, owners, *pair) + 0.001 * number for number, pair in enumerate(pairs)}
    best = best_ranks(texts, owners, 6)
    assert ranks_by(by_rule, texts, owners, 6) == pytest.approx(values(best))
    chosen = torch.randn(len(pairs), 40, generator=generator)
    for column in chosen.T.tolist():
        found = ranks_by(dict(zip(pairs, column, strict=True)), texts, owners, 6)
        assert all(one <= most + 1e-9 for one, most in zip(found, values(best), strict=True))


def test_who_shares() -> None:
    assert shared("aabbc", [0, 1, 2, 2, 3]) == (2, 2), "one image may say the same twice"
    assert shared("abc", [0, 1, 2]) == (0, 0)
    by_image, by_text = best_ranks("aab", [0, 1, 2], 4)
    assert by_image.tolist() == [2, 2, 1, 0]
    assert by_text.tolist() == [1, 2, 1]
