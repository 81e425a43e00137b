"""Rows of the bottleneck family."""

from __future__ import annotations

from tests.injection.table import Row, each, method, widths
from vlatrain.adapters import Bottleneck
from vlatrain.injection.points import Place, Sites


def plain(at: Place) -> int:
    return Bottleneck.count(at.width, 4)


def with_norms(where: Sites) -> int:
    """Plain ones, and the norms of the towers: one for each site of each layer, and those outside."""
    total = each(plain)(where)
    for tower, width in widths(where).items():
        stack, outside = where.stacks[tower], 1 + ("embedding_norm" in where.inside[tower])  # 1: the final one, or that
        total += (stack.layers * len(stack.sites) + outside) * 2 * width
    return total


ROWS: dict[str, Row] = {
    "bottleneck": Row(method("bottleneck", dim=4), each(plain)),
    "bottleneck, parallel": Row(method("bottleneck", dim=4, options={"placement": "parallel"}), each(plain)),
    "bottleneck, norms": Row(
        method("bottleneck", dim=4, options={"norm_before": True, "norm_after": True}),
        each(lambda at: plain(at) + 4 * at.width),
    ),
    "bottleneck, learned scale": Row(
        method("bottleneck", dim=4, options={"scale": "learned"}), each(lambda at: plain(at) + 1)
    ),
    "bottleneck, gated": Row(
        method("bottleneck", dim=4, options={"scale": "gated"}), each(lambda at: plain(at) + at.width + 1)
    ),
    "bottleneck, low rank": Row(
        method("bottleneck", dim=4, options={"projection": "low_rank", "rank": 2}),
        each(lambda at: 2 * 2 * (at.width + 4) + at.width + 4),
    ),
    "bottleneck, lora inside": Row(
        method("bottleneck", dim=4, options={"projection": "lora", "rank": 2}),
        each(lambda at: 2 * 2 * (at.width + 4) + at.width + 4),
    ),
    "bottleneck, with the trunk's norms": Row(method("bottleneck", dim=4, trunk=["norms"]), with_norms),
    "bottleneck, phm": Row(
        method("bottleneck", dim=4, options={"projection": "phm", "terms": 2, "rank": 0}),
        each(lambda at: 2 * (8 + at.width * 4 // 2) + at.width + 4),
    ),
}
