"""Rows of designs that are no bottlenecks: a side network, prompts, attention to a prompt, biases."""

from __future__ import annotations

from tests.injection.rows_peft import linears, lora_count
from tests.injection.table import WIDTH, Row, each, method
from vlatrain.adapters.ladder import Ladder
from vlatrain.adapters.lst import Lst
from vlatrain.injection.points import Point, Sites

IN_SOFTMAX = "a prompt takes part in the softmax of attention"
WHOLE = {"rows": "it changes the length of the sequences in the layers"}


def rungs(reduction: int) -> object:
    """Of a ladder in each tower."""

    def count(where: Sites) -> int:
        layers = {(point.tower, point.layer) for point in where.places}
        towers = {tower for tower, _ in layers}
        return sum(Ladder.count(WIDTH, sum(tower == own for own, _ in layers), reduction) for tower in towers)

    return count


def lst_count(reads: str) -> object:
    """Of a side beside each tower; one that attends to the trunk has wider keys and values, and only towers with a head have it."""

    def count(where: Sites) -> int:
        total = 0
        for tower in towers(where):
            place = next(place for point, place in where.places.items() if point.tower == tower)
            total += Lst.count(WIDTH, 2, 2, cross=bool(place.cross), end=place.end)
            if place.cross and reads == "trunk":
                total += 2 * 2 * (WIDTH // 4) * (WIDTH - WIDTH // 4)
        return total

    return count


def biases(where: Sites) -> int:
    """The widths of the layers' outputs, but for attention's key."""
    sizes = {"qkv": 3 * WIDTH, "inner": 2 * WIDTH, "key": 0}
    return sum(sizes.get(role, WIDTH) for place in where.places.values() for role in place.modules)


def all_biases(where: Sites) -> int:
    """Those, attention's keys, and the modules outside the layers."""
    keys = sum("key" in place.modules for place in where.places.values())
    outside = sum(len(set(where.inside[tower]) - {"layers", "embeddings"}) for tower in towers(where))
    return biases(where) + (keys + outside) * WIDTH


def towers(where: Sites) -> set[str]:
    return {point.tower for point in where.places}


def layers(where: Sites) -> set[Point]:
    return set(where.at("layer"))


ROWS: dict[str, Row] = {
    "ladder": Row(method("ladder"), rungs(4)),
    "ladder, layers dropped": Row(method("ladder", options={"reduction": 8}, points=["end.1"]), rungs(8)),
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
        lambda where: len(towers(where)) * 3 * WIDTH,
        cannot=WHOLE,
        inexact=IN_SOFTMAX,
        tolerance=0.5,
    ),
    "prompt, deep": Row(
        method("prompt", dim=3, options={"deep": True}),
        lambda where: len(layers(where)) * 3 * WIDTH,
        cannot=WHOLE,
        inexact=IN_SOFTMAX,
        tolerance=0.5,
    ),
    "llama_adapter": Row(method("llama_adapter", dim=3, points=["*.*.attn"]), each(3 * WIDTH + 2)),
    "bitfit": Row(method("bitfit"), biases),
    "bitfit, keys and outside": Row(
        method("bitfit", options={"keys": True, "outside": True}),
        all_biases,
    ),
    "prompt, by a network": Row(
        method("prompt", dim=3, options={"hidden": 5}),
        lambda where: len(towers(where)) * (3 * WIDTH + 2 * WIDTH * 5 + 5 + WIDTH),
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
