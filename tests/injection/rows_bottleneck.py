"""Rows of the bottleneck family."""

from __future__ import annotations

from tests.injection.table import WIDTH, Row, each, method
from vlatrain.adapters import Bottleneck
from vlatrain.injection.points import Sites

PLAIN = Bottleneck.count(WIDTH, 4)


def with_norms(where: Sites) -> int:
    """Plain ones, and the norms of the towers: one for each site of each layer, and those outside."""
    towers = {point.tower for point in where.places}
    outside = sum(
        1 + ("embedding_norm" in where.inside[tower]) for tower in towers
    )  # the final one, or the embeddings'
    inside = sum(2 * len(where.stacks[tower].sites) for tower in towers)
    return each(PLAIN)(where) + (inside + outside) * 2 * WIDTH


ROWS: dict[str, Row] = {
    "bottleneck": Row(method("bottleneck", dim=4), each(PLAIN)),
    "bottleneck, parallel": Row(method("bottleneck", dim=4, options={"placement": "parallel"}), each(PLAIN)),
    "bottleneck, norms": Row(
        method("bottleneck", dim=4, options={"norm_before": True, "norm_after": True}), each(PLAIN + 4 * WIDTH)
    ),
    "bottleneck, learned scale": Row(method("bottleneck", dim=4, options={"scale": "learned"}), each(PLAIN + 1)),
    "bottleneck, gated": Row(method("bottleneck", dim=4, options={"scale": "gated"}), each(PLAIN + WIDTH + 1)),
    "bottleneck, low rank": Row(
        method("bottleneck", dim=4, options={"projection": "low_rank", "rank": 2}),
        each(2 * 2 * (WIDTH + 4) + WIDTH + 4),
    ),
    "bottleneck, lora inside": Row(
        method("bottleneck", dim=4, options={"projection": "lora", "rank": 2}), each(2 * 2 * (WIDTH + 4) + WIDTH + 4)
    ),
    "bottleneck, with the trunk's norms": Row(method("bottleneck", dim=4, trunk=["norms"]), with_norms),
    "bottleneck, phm": Row(
        method("bottleneck", dim=4, options={"projection": "phm", "terms": 2, "rank": 0}),
        each(2 * (8 + WIDTH * 4 // 2) + WIDTH + 4),
    ),
}
