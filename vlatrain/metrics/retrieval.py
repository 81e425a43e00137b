"""Image-text retrieval: ranks, recall at k, median rank, computed in chunks.

Counted as on COCO and Flickr30k (Karpathy & Fei-Fei, CVPR 2015; Faghri et al., VSE++, BMVC 2018): an image has several
captions. Image to text, the rank of an image is that of its best-ranked own caption; text to image, the rank of a
caption is that of its image. Recall at k is the percentage of queries with rank <= k.

One deviation, on purpose: equal scores are not hits. A positive comes *after* everything of another image or caption
with the same score, so that a collapsed model, for which all scores are equal, scores 0 and not 100; the usual
sort-based scripts give such ties an arbitrary order. Duplicates follow from that: an image that occurs twice in the
gallery makes its captions ambiguous, and each costs the other one rank. A score that is not a number is never a hit.

Shapes: I images, T texts, D features, Q queries, G gallery items, K candidates kept for re-ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from vlatrain.metrics.precision import full_precision

Over = Callable[[Callable[[slice], Any], Sequence[slice]], Iterable[Any]]
"""`map`, or what does the same in several processes, each of which computes some of the chunks."""


def similarity(rows: Tensor, columns: Tensor) -> Tensor:
    """Scores (A, B) by dot product. An image may have several vectors (BLIP-2: one a query), of which the best counts.

    Args:
        rows: (A, D), or (A, V, D); any floating dtype.
        columns: (B, D), or (B, V, D); at most one of both has several vectors.

    Returns:
        fp32, computed in fp32 under autocast too.
    """
    if rows.ndim == 3:
        return similarity(columns, rows).T
    rows, columns = rows.float(), columns.float()
    with full_precision(rows.device):
        if columns.ndim == 3:
            return reduce(torch.maximum, (rows @ vectors.T for vectors in columns.unbind(dim=1)))
        return rows @ columns.T


def ranks(
    image_features: Tensor, text_features: Tensor, text_to_image: Tensor, chunk: int = 512, over: Over = map
) -> tuple[Tensor, Tensor]:
    """Ranks in both directions by dot product; pass normalised features for cosine similarity.

    Memory is O(chunk * (I + T)); no I x T matrix exists.

    Args:
        image_features: (I, D), or (I, V, D), see `similarity`; any floating dtype; computed in float32 on the features' device.
        text_features: (T, D).
        text_to_image: (T,) index of each text's image.
        chunk: rows scored at a time.
        over: how the chunks are gone through.

    Returns:
        image-to-text ranks (I,) and text-to-image ranks (T,), int64, 1 is best. An image without any text is no query:
        its rank is 0, and `recalls` and `median_rank` leave it out.

    Raises:
        ValueError: shapes or indices that do not fit together.
    """
    images, texts = image_features.float(), text_features.float()
    group_index = text_to_image.to(device=texts.device, dtype=torch.long)
    if (
        images.ndim not in (2, 3)
        or texts.ndim != 2
        or images.shape[-1] != texts.shape[1]
        or group_index.shape != texts.shape[:1]
    ):
        raise ValueError(
            f"features (I, D) and (T, D) with text_to_image (T,) are needed, not {tuple(images.shape)}, "
            f"{tuple(texts.shape)} and {tuple(group_index.shape)}"
        )
    if group_index.numel() and not 0 <= int(group_index.min()) <= int(group_index.max()) < len(images):
        raise ValueError(
            f"text_to_image holds indices from {int(group_index.min())} to {int(group_index.max())} for {len(images)} images"
        )

    def of_images(piece: slice) -> Tensor:
        places = torch.arange(piece.start, piece.stop, device=images.device)
        return _of_images(similarity(images[piece], texts), places, group_index)

    def of_texts(piece: slice) -> Tensor:
        return _of_texts(similarity(texts[piece], images), group_index[piece])

    none = torch.zeros(0, dtype=torch.long, device=images.device)
    image_ranks = torch.cat([none, *over(of_images, _chunks(len(images), chunk))])
    return image_ranks, torch.cat([none, *over(of_texts, _chunks(len(texts), chunk))])


def ranks_of_scores(scores: Tensor, text_to_image: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks in both directions from the score of every pair: what a model without features gives.

    Args:
        scores: (I, T), higher is better.
        text_to_image: (T,) index of each text's image.

    Returns:
        As `ranks`.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if scores.ndim != 2 or text_to_image.shape != scores.shape[1:]:
        raise ValueError(
            f"scores (I, T) and text_to_image (T,) are needed, not {tuple(scores.shape)} and {tuple(text_to_image.shape)}"
        )
    group_index = text_to_image.to(device=scores.device, dtype=torch.long)
    rows = torch.arange(len(scores), device=scores.device)
    return _of_images(scores, rows, group_index), _of_texts(scores.T, group_index)


def recalls(ranks: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at each k, percent: `{"r@1": ..., "r@5": ..., "r@10": ...}`. Ranks of 0 are no queries.

    Raises:
        ValueError: no query at all.
    """
    queries = _queries(ranks)
    return {f"r@{k}": 100.0 * int((queries <= k).sum()) / len(queries) for k in ks}


def median_rank(ranks: Tensor) -> float:
    """The median rank, 1 is best; of an even number of queries the middle two's mean. Ranks of 0 are no queries."""
    return float(_queries(ranks).double().quantile(0.5))


def top_k(queries: Tensor, gallery: Tensor, k: int, chunk: int = 512, over: Over = map) -> tuple[Tensor, Tensor]:
    """The k best gallery items of each query by `similarity`, best first.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        k: how many to keep, K = min(k, G).
        chunk: queries scored at a time.
        over: how the chunks are gone through.

    Returns:
        scores (Q, K) float32 and indices (Q, K) int64 into the gallery.
    """
    kept = min(k, len(gallery))

    def best(piece: slice) -> tuple[Tensor, Tensor]:
        scores, indices = similarity(queries[piece], gallery).topk(kept, dim=1)
        return scores, indices

    none = torch.empty(0, kept, device=queries.device), torch.empty(0, kept, dtype=torch.long, device=queries.device)
    scores, indices = zip(none, *over(best, _chunks(len(queries), chunk)), strict=True)
    return torch.cat(scores), torch.cat(indices)


def reranked(first_ranks: Tensor, indices: Tensor, scores: Tensor, positives: Sequence[Sequence[int]]) -> Tensor:
    """Ranks after the top k of each query were scored anew (for BLIP, by the image-text matching head).

    The k candidates keep the first k places and change order among themselves; everything else keeps its place behind
    them. A query with a positive among its candidates gets the new rank of the best one, ties counting against it; a
    query with none keeps its first rank, but never one among the first k, which candidates hold.

    Args:
        first_ranks: (Q,) ranks before re-ranking, from `ranks`; 0 (no query) stays 0.
        indices: (Q, K) candidates, from `top_k`.
        scores: (Q, K) their new scores, higher is better.
        positives: for each query the gallery items that count as found: one image, or all captions of an image.

    Returns:
        (Q,) int64 ranks.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if indices.shape != scores.shape or len(first_ranks) != len(indices) or len(positives) != len(indices):
        raise ValueError(
            "ranks (Q,), indices and scores (Q, K) and Q lists of positives are needed, not "
            f"{tuple(first_ranks.shape)}, {tuple(indices.shape)}, {tuple(scores.shape)} and {len(positives)}"
        )
    # row by row on the CPU: on a GPU each row would wait for several transfers
    result, indices, scores = first_ranks.to("cpu", copy=True), indices.cpu(), scores.cpu()
    for row, own_items in enumerate(positives):
        if result[row] == 0:
            continue
        own = torch.isin(indices[row], torch.as_tensor(list(own_items), dtype=indices.dtype))
        fresh = scores[row].float()
        if own.any():
            best = fresh.masked_fill(~own | fresh.isnan(), -torch.inf).max()
            result[row] = int((~own & ~(fresh < best)).sum()) + 1
        else:
            result[row] = max(int(result[row]), indices.shape[1] + 1)
    return result.to(first_ranks.device)


def _of_images(scores: Tensor, rows: Tensor, group_index: Tensor) -> Tensor:
    """Ranks (N,) of the images of these rows (N,) from their scores (N, T) with all texts, whose images are `group_index` (T,)."""
    own = group_index[None] == rows[:, None]  # (N, T)
    best = (
        scores.masked_fill(~own | scores.isnan(), -torch.inf).amax(dim=1, keepdim=True) if scores.shape[1] else scores
    )
    # another image's caption is ahead unless it is strictly worse; NaN compares false, hence the negation
    ahead = (~own & ~(scores < best)).sum(dim=1)
    return torch.where(own.any(dim=1), ahead + 1, 0)


def _of_texts(scores: Tensor, group_index: Tensor) -> Tensor:
    """Ranks (N,) of texts from their scores (N, I) with all images, of which `group_index` (N,) are theirs."""
    own = scores.gather(1, group_index[:, None])
    return (~(scores < own)).sum(dim=1)  # the image itself among them: it is not below itself


def _chunks(total: int, size: int) -> list[slice]:
    """So many rows, `size` at a time."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _queries(ranks: Tensor) -> Tensor:
    queries = ranks[ranks > 0]
    if not len(queries):
        raise ValueError("no query to rank: the gallery or the list of queries is empty")
    return queries
