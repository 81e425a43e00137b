"""Retrieval ranks against brute force on the full matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlatrain.metrics import retrieval


def brute_force(images: Tensor, texts: Tensor, group_index: Tensor) -> tuple[list[int], list[int]]:
    """Ranks by the definition, one query at a time, everything with an equal score ahead."""
    matrix = (images @ texts.T).tolist()
    owners = group_index.tolist()
    image_ranks = []
    for i, row in enumerate(matrix):
        own = [row[t] for t, o in enumerate(owners) if o == i]
        image_ranks.append(1 + sum(s >= max(own) for t, s in enumerate(row) if owners[t] != i) if own else 0)
    text_ranks = [
        1 + sum(matrix[i][t] >= matrix[o][t] for i in range(len(images)) if i != o) for t, o in enumerate(owners)
    ]
    return image_ranks, text_ranks


def test_of_several_vectors_of_an_image_the_best_counts() -> None:
    images, texts = torch.randn(5, 3, 8), torch.randn(7, 8)
    group_index = torch.tensor([0, 1, 1, 2, 3, 4, 4])
    scores = torch.tensor([[max(float(v @ text) for v in image) for text in texts] for image in images])  # (I, T)
    torch.testing.assert_close(retrieval.similarity(images, texts), scores)
    torch.testing.assert_close(retrieval.similarity(texts, images), scores.T)
    expected = retrieval.ranks_of_scores(scores, group_index)
    for found, own in zip(retrieval.ranks(images, texts, group_index, chunk=2), expected, strict=True):
        assert torch.equal(found, own)
    assert torch.equal(retrieval.top_k(texts, images, 2, chunk=3)[1], scores.T.topk(2).indices)


def test_ranks_under_autocast_are_those_without() -> None:
    """In bf16 these cosines, all near 1, would be ties, which count against the positive."""
    images = torch.nn.functional.normalize(1 + 0.05 * torch.randn(50, 64), dim=-1)
    texts = torch.nn.functional.normalize(images + 0.01 * torch.randn(50, 64), dim=-1)
    group_index = torch.arange(50)
    expected, best = retrieval.ranks(images, texts, group_index), retrieval.top_k(images, texts, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found, found_best = retrieval.ranks(images, texts, group_index), retrieval.top_k(images, texts, 3)
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert torch.equal(found_best[0], best[0])
    assert torch.equal(found_best[1], best[1])


@st.composite
def galleries(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Small integer features: exact in float32, full of ties and duplicates; some images without a text."""
    count, width = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    group_index = draw(st.lists(st.integers(0, count - 1), min_size=0, max_size=12))
    feature = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    images = draw(st.lists(feature, min_size=count, max_size=count))
    texts = draw(st.lists(feature, min_size=len(group_index), max_size=len(group_index)))
    shape = (len(group_index), width)
    return (
        torch.tensor(images).float(),
        torch.tensor(texts).float().reshape(shape),
        torch.tensor(group_index, dtype=torch.long),
    )


@settings(max_examples=150, deadline=None)
@given(galleries(), st.integers(1, 13))
def test_ranks_are_those_of_brute_force_for_every_chunk_size(
    gallery: tuple[Tensor, Tensor, Tensor], chunk: int
) -> None:
    image_ranks, text_ranks = retrieval.ranks(*gallery, chunk=chunk)
    assert (image_ranks.tolist(), text_ranks.tolist()) == brute_force(*gallery)


def test_several_captions_an_image_count_by_the_best() -> None:
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])  # the second caption of image 0 describes image 1
    image_ranks, text_ranks = retrieval.ranks(images, texts, torch.tensor([0, 0, 1]))
    assert image_ranks.tolist() == [1, 2]
    assert text_ranks.tolist() == [1, 2, 1]


def test_equal_scores_are_not_hits() -> None:
    """A collapsed model, all features alike, is last everywhere."""
    image_ranks, text_ranks = retrieval.ranks(torch.ones(20, 4), torch.ones(20, 4), torch.arange(20))
    assert image_ranks.tolist() == text_ranks.tolist() == [20] * 20
    assert retrieval.recalls(image_ranks) == {"r@1": 0.0, "r@5": 0.0, "r@10": 0.0}


def test_a_score_that_is_no_number_is_not_a_hit() -> None:
    images = torch.eye(3)
    images[0] = torch.nan
    image_ranks, text_ranks = retrieval.ranks(images, torch.eye(3), torch.arange(3))
    assert image_ranks[0] == text_ranks[0] == 3
    assert text_ranks[1] == 2  # the image that cannot be compared is ahead, too
    assert image_ranks[1] == 1


def test_a_duplicate_image_costs_a_rank() -> None:
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    _, text_ranks = retrieval.ranks(images, images, torch.arange(3))
    assert text_ranks.tolist() == [2, 2, 1]


def test_half_precision_features_are_compared_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(30, 16, generator=generator).bfloat16()
    texts = images[torch.arange(30)] + torch.randn(30, 16, generator=generator).bfloat16()
    half = retrieval.ranks(images, texts, torch.arange(30))
    full = retrieval.ranks(images.float(), texts.float(), torch.arange(30))
    assert [r.tolist() for r in half] == [r.tolist() for r in full]


def test_recalls_and_median() -> None:
    ranks = torch.tensor([1, 1, 5, 6, 11, 0])  # 0: no query
    assert retrieval.recalls(ranks) == {"r@1": 40.0, "r@5": 60.0, "r@10": 80.0}
    assert retrieval.recalls(ranks, ks=(20,)) == {"r@20": 100.0}
    assert retrieval.median_rank(ranks) == 5.0
    assert retrieval.median_rank(torch.tensor([1, 2])) == 1.5


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no query"):
        retrieval.recalls(torch.tensor([0]))
    with pytest.raises(ValueError, match="are needed"):
        retrieval.ranks(torch.eye(2), torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="from 0 to 2 for 2 images"):
        retrieval.ranks(torch.eye(2), torch.ones(3, 2), torch.arange(3))
    with pytest.raises(ValueError, match="are needed"):
        retrieval.reranked(torch.ones(1), torch.ones(1, 2), torch.ones(1, 3), [[0]])


@settings(max_examples=60, deadline=None)
@given(galleries(), st.integers(1, 9), st.integers(1, 5))
def test_top_k_is_the_head_of_a_full_sort(gallery: tuple[Tensor, Tensor, Tensor], k: int, chunk: int) -> None:
    images, texts, _ = gallery
    scores, indices = retrieval.top_k(texts, images, k, chunk=chunk)
    matrix = texts @ images.T
    assert scores.shape == indices.shape == (len(texts), min(k, len(images)))
    assert torch.equal(scores, matrix.sort(dim=1, descending=True).values[:, :k])
    assert torch.equal(scores, matrix.gather(1, indices))


@settings(max_examples=100, deadline=None)
@given(galleries(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_reranked_is_a_full_ranking_with_the_candidates_in_front(
    gallery: tuple[Tensor, Tensor, Tensor], k: int, random: object
) -> None:
    """Brute force: candidates get scores above everything else, the rest keeps its first score."""
    images, texts, group_index = gallery
    if not len(texts):
        return
    first, _ = retrieval.ranks(images, texts, group_index)
    _, indices = retrieval.top_k(images, texts, k)
    fresh = torch.tensor([[float(random.randint(0, 3)) for _ in row] for row in indices])  # type: ignore[attr-defined]
    positives = [[t for t, o in enumerate(group_index.tolist()) if o == i] for i in range(len(images))]
    full = (images @ texts.T).scatter(1, indices, fresh + 1000)
    expected = []
    for i, own in enumerate(positives):
        best = max((float(full[i, t]) for t in own), default=None)
        others = [float(full[i, t]) for t in range(len(texts)) if t not in own]
        expected.append(0 if best is None else 1 + sum(s >= best for s in others))
    assert retrieval.reranked(first, indices, fresh, positives).tolist() == expected
