"""Rows of designs that are no bottlenecks: a side network, prompts, attention to a prompt, biases."""

from __future__ import annotations

from tests.injection.rows_peft import linears, lora_count, shape_of
from tests.injection.table import Row, each, method, widths
from vlatrain.adapters.ladder import Ladder
from vlatrain.adapters.lst import Lst
from vlatrain.injection.points import Point, Sites

IN_SOFTMAX = "a prompt takes part in the softmax of attention"
WHOLE = {"rows": "it changes the length of the sequences in the layers"}


def rungs(reduction: int) -> object:
    """Of a ladder in each tower."""

    def count(where: Sites) -> int:
        chosen = layers(where)
        return sum(
            Ladder.count(width, sum(tower == point.tower for point in chosen), reduction)
            for tower, width in widths(where).items()
        )

    return count


def lst_count(reads: str) -> object:
    """Of a side beside each tower, which attends to the other's side or to its trunk."""

    def count(where: Sites) -> int:
        total = 0
        for tower, width in widths(where).items():
            place = next(place for point, place in where.places.items() if point.tower == tower)
            depth = where.stacks[tower].layers
            cross = place.cross_width if reads == "trunk" else place.cross_width // 4
            total += Lst.count(width, depth, place.heads, cross=cross, end=place.end)
        return total

    return count


def biases(where: Sites) -> int:
    """The widths of the layers' outputs, but for attention's key."""
    return sum(
        place.width if role == "norm" else shape_of(point, place, role)[1]
        for point, place in where.places.items()
        for role in place.modules
        if role != "key"
    )


def all_biases(where: Sites) -> int:
    """Those, attention's keys, and the modules outside the layers."""
    keys = sum(place.width for place in where.places.values() if "key" in place.modules)
    outside = sum(
        len(set(where.inside[tower]) - {"layers", "embeddings"}) * width for tower, width in widths(where).items()
    )
    return biases(where) + keys + outside


def layers(where: Sites) -> set[Point]:
    return set(where.at("layer"))


ROWS: dict[str, Row] = {
    "ladder": Row(method("ladder"), rungs(4)),
    "ladder, layers dropped": Row(method("ladder", options={"reduction": 8}, points=["end.{1,2}"]), rungs(8)),
    "lst": Row(
        method("lst"),
        lst_count("side"),
        unfit={("blip", "retrieval"): "matches texts with images anew"},
        cannot={"rows": "a side's attention and its cache are of the whole batch"},
    ),
    "lst, attends to the trunk": Row(
        method("lst", options={"reads": "trunk"}, points=["end"]),
        lst_count("trunk"),
        cannot={"rows": "a side's attention and its cache are of the whole batch"},
    ),
    "prompt": Row(
        method("prompt", dim=3),
        lambda where: sum(3 * width for width in widths(where).values()),
        cannot=WHOLE,
        inexact=IN_SOFTMAX,
        tolerance=0.5,
    ),
    "prompt, deep": Row(
        method("prompt", dim=3, options={"deep": True}),
        lambda where: sum(3 * place.width for place in where.at("layer").values()),
        cannot=WHOLE,
        inexact=IN_SOFTMAX,
        tolerance=0.5,
    ),
    "llama_adapter": Row(method("llama_adapter", dim=3, points=["*.*.attn"]), each(lambda at: 3 * at.width + at.heads)),
    "bitfit": Row(method("bitfit"), biases),
    "bitfit, keys and outside": Row(
        method("bitfit", options={"keys": True, "outside": True}),
        all_biases,
    ),
    "prompt, by a network": Row(
        method("prompt", dim=3, options={"hidden": 5}),
        lambda where: sum(3 * width + 2 * width * 5 + 5 + width for width in widths(where).values()),
        cannot=WHOLE,
        inexact=IN_SOFTMAX,
        tolerance=0.5,
    ),
    "task_lora": Row(method("task_lora", dim=2), lora_count),
    "task_lora, in attention": Row(
        method("task_lora", dim=2, options={"roles": ["attn.query", "attn.value"]}),
        lambda where: sum(2 * (ins + outs) for ins, outs in linears(where, ["attn.query", "attn.value"])),
    ),
}
