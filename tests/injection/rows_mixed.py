"""Rows of mixed methods: several on points of their own."""

from __future__ import annotations

from typing import Any

from tests.injection.rows_peft import lora_count
from tests.injection.table import Row, each, method
from vlatrain.adapters import Bottleneck
from vlatrain.injection.points import Sites

CANNOT = {
    "names": "PEFT's names belong to one method, and all components share one",
    "rows": "as there is no second adapter",
    "transformers": "its load_adapter takes one method",
}


def mixed(**components: Any) -> Any:
    """A mixed method of these components alone."""
    config = method("mixed")
    config.components = components
    return config


def tower(where: Sites, name: str, others: bool = False) -> Sites:
    """The places in a tower, or those in the others."""
    return Sites({p: place for p, place in where.places.items() if (p.tower == name) != others})


def default_count(where: Sites) -> int:
    """LoRA of rank 4 in the image tower, bottlenecks of 16 elsewhere."""
    others = each(lambda at: Bottleneck.count(at.width, 16))
    return 2 * lora_count(tower(where, "vision")) + others(tower(where, "vision", others=True))


def ours_count(where: Sites) -> int:
    """Bottlenecks of 4 in the image tower, of 2, without biases, elsewhere."""
    inside, outside = (tower(where, "vision", others) for others in (False, True))
    return each(lambda at: Bottleneck.count(at.width, 4))(inside) + each(
        lambda at: Bottleneck.count(at.width, 2, bias=False)
    )(outside)


def loras_count(where: Sites) -> int:
    """LoRA of rank 2 in the image tower, of rank 4 elsewhere."""
    return lora_count(tower(where, "vision")) + 2 * lora_count(tower(where, "vision", others=True))


def stacked_count(where: Sites) -> int:
    """LoRA of rank 2 in the layers, and a bottleneck of 4 behind them."""
    return lora_count(where) + each(lambda at: Bottleneck.count(at.width, 4))(where)


ROWS: dict[str, Row] = {
    "mixed": Row(method("mixed"), default_count, cannot=CANNOT),
    "mixed, both ours": Row(
        mixed(
            vision=method("bottleneck", dim=4, points=["vision"]),
            rest=method("bottleneck", dim=2, bias=False, options={"placement": "parallel"}),
        ),
        ours_count,
        cannot=CANNOT,
    ),
    "mixed, two LoRAs": Row(
        mixed(vision=method("lora", dim=2, points=["vision"]), rest=method("lora", dim=4)), loras_count, cannot=CANNOT
    ),
    "mixed, on the same points": Row(
        mixed(after=method("bottleneck", dim=4), inside=method("lora", dim=2)), stacked_count, cannot=CANNOT
    ),
}
