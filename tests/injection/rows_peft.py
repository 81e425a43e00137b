"""Rows of PEFT's own methods."""

from __future__ import annotations

from tests.injection.table import WIDTH, Row, method
from vlatrain.injection.points import Sites


def lora_count(where: Sites) -> int:
    """`r * (in + out)` for each linear layer: attention's query and value (or the fused one), the feed-forward's two."""
    total = 0
    for place in where.places.values():
        if "inner" in place.modules:
            total += 2 * 2 * (WIDTH + 2 * WIDTH)
        elif "qkv" in place.modules:
            total += 2 * (WIDTH + 3 * WIDTH)
        else:
            total += 2 * 2 * (WIDTH + WIDTH)
    return total


ROWS: dict[str, Row] = {
    "lora": Row(
        method("lora", dim=2),
        lora_count,
        cannot={"rows": "PEFT's mixed batches want a name for each row, beams included"},
    ),
}
