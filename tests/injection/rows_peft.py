"""Rows of PEFT's own methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from peft import PeftType

from tests.injection.table import INNER, Row, each, method
from vlatrain.injection.points import Place, Point, Sites

LAYERS = ("query", "value", "ffn.inner", "ffn.out")  # as in conf/adapter/lora.yaml
GRAPHS = "PEFT's code for it breaks the graph; without `fullgraph` it is compiled in pieces"
ALONE = "PEFT has no mixed batches of this method"


def linears(where: Sites, targets: Sequence[str] = LAYERS) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers that the targets name."""
    shapes = {
        path: shape_of(point, place, role)
        for point, place in where.places.items()
        for role, path in place.modules.items()
    }
    return [shapes[path] for path in where.targeted(targets)]


def shape_of(point: Point, place: Place, role: str) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    width, inner = place.width, INNER[point.tower]
    if point.site == "cross" and role in ("key", "value"):
        return place.cross_width, width
    if point.site == "ffn":
        return (width, inner) if role == "inner" else (inner, width)
    return width, 3 * width if role == "qkv" else width


def per_layer(count: Callable[[int, int], int]) -> Callable[[Sites], int]:
    """So many parameters for each linear layer, by its inputs and outputs."""
    return lambda where: sum(count(*shape) for shape in linears(where))


def lora_count(where: Sites) -> int:
    """`r * (in + out)` for each linear layer, with a rank of 2."""
    return per_layer(lambda ins, outs: 2 * (ins + outs))(where)


def ia3_count(where: Sites) -> int:
    """A factor for each output of keys and values, and for each input of the feed-forward's second layer."""
    return sum(outs for _, outs in linears(where, ["key", "value"])) + sum(
        ins for ins, _ in linears(where, ["ffn.out"])
    )


def vblora_count(where: Sites) -> int:
    """A bank of 8 vectors of 16, and a logit for each of them for each sub-vector of each layer's two matrices of rank 2."""
    return 8 * 16 + per_layer(lambda ins, outs: 2 * (ins // 16 + outs // 16) * 8)(where)


def halves(width: int) -> tuple[int, int]:
    """The factors of a width that are nearest to each other, the smaller first."""
    small = max(factor for factor in range(1, math.isqrt(width) + 1) if width % factor == 0)
    return small, width // small


def lokr(ins: int, outs: int) -> int:
    """The small factor, and the large one of rank 2."""
    (in_small, in_large), (out_small, out_large) = halves(ins), halves(outs)
    return in_small * out_small + 2 * (in_large + out_large)


def row(name: str, count: Callable[[int, int], int], **more: object) -> Row:
    """A row of a method in linear layers that has nothing special but that it cannot mix adapters in a batch."""
    options = {key: more.pop(key) for key in ("dim", "scaling", "options") if key in more}
    cannot = {"rows": ALONE, **more.pop("cannot", {})}  # type: ignore[dict-item]
    return Row(method(name, **options), per_layer(count), cannot=cannot, **more)  # type: ignore[arg-type]


BEAMS = {"rows": "PEFT's mixed batches want a name for each row, beams included"}

ALL: dict[str, Row] = {
    "lora": Row(method("lora", dim=2), lora_count, cannot=BEAMS),
    "dora": Row(
        method("dora", dim=2),
        per_layer(lambda ins, outs: 2 * (ins + outs) + outs),
        cannot={**BEAMS, "transformers": "its load_adapter does not load the magnitudes", "compile": GRAPHS},
        renamed=(r"lora_magnitude_vector\.weight$", "lora_magnitude_vector"),
    ),
    "rslora": Row(method("rslora", dim=2), lora_count, cannot=BEAMS),
    "ia3": Row(method("ia3"), ia3_count, cannot={"rows": ALONE}),
    "vera": row(
        "vera",
        lambda ins, outs: 16 + outs,
        dim=16,
        cannot={"transformers": "it does not take methods whose layers share tensors"},
        fixed=r"vera_[AB]$",
    ),
    "vblora": Row(
        method("vblora", dim=2, options={"num_vectors": 8, "vector_length": 16}),
        vblora_count,
        cannot={"rows": ALONE, "transformers": "it does not take methods whose layers share tensors"},
        inexact="PEFT draws the bank from U(-0.02, 0.02)",
        renamed=(r"^base_model\.model\..*\.(vblora_vector_bank)$", r"base_model.\1"),
    ),
    "loha": row("loha", lambda ins, outs: 2 * 2 * (ins + outs), dim=2),
    "lokr": row("lokr", lokr, dim=2),
    "oft": row("oft", lambda ins, outs: ins * (4 - 1) // 2, dim=4),
    "boft": row("boft", lambda ins, outs: ins * 4 + outs, dim=4),
    "hra": row(
        "hra", lambda ins, outs: 2 * ins, dim=2, inexact="pairs of reflections undo each other up to rounding only"
    ),
    "fourierft": row("fourierft", lambda ins, outs: 20, options={"n_frequency": 20}),
    "waveft": row("waveft", lambda ins, outs: 20, options={"n_frequency": 20}, cannot={"compile": GRAPHS}),
    "c3a": row("c3a", lambda ins, outs: ins * outs // 8, options={"block_size": 8}),
    "hira": row("hira", lambda ins, outs: 2 * (ins + outs), dim=2),
    "miss": row("miss", lambda ins, outs: 2 * outs, dim=2),
    "randlora": row(
        "randlora",
        lambda ins, outs: math.ceil(min(ins, outs) / 4) * (4 + min(ins, outs)),
        dim=4,
    ),
    "delora": row("delora", lambda ins, outs: 2 * (ins + outs) + 1, dim=2, fixed=r"delora_w_norm$"),
    "gralora": row("gralora", lambda ins, outs: 4 * (ins + outs), dim=4),
    "road": Row(
        method("road", options={"group_size": 16}),
        per_layer(lambda ins, outs: outs),
        cannot={"rows": "PEFT's mixed batches want a name for each row, beams included"},
    ),
    "ln_tuning": Row(method("ln_tuning"), each(lambda at: 2 * at.width), cannot={"rows": ALONE}),
}
ROWS = {name: row for name, row in ALL.items() if row.config.name.upper() in PeftType.__members__}
"""Without HiRA, which the oldest PEFT lacks."""
