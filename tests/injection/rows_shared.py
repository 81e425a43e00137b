"""Rows of the bottleneck's relatives that share: by design (Compacter, HyperFormer, UniAdapter), or by the sharing rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.injection.table import WIDTH, Row, each, method
from vlatrain.adapters import Bottleneck
from vlatrain.injection.points import Point, Sites

DOWN, UP = WIDTH * 4 + 4, 4 * WIDTH + WIDTH  # the halves of a plain one with dim 4
COMMON = (4 + 1) * 8  # eight shared columns


def owners(where: Sites, over: Sequence[str]) -> int:
    """How many different places are left, where those that differ only in `over` count as one."""
    return len(
        {tuple(getattr(p, part) for part in ("tower", "layer", "site") if part not in over) for p in where.places}
    )


def halves(shared: int, own: int, over: Sequence[str]) -> Callable[[Sites], int]:
    """A part of its own in each place, and a shared one stored once."""
    return lambda where: owners(where, over) * shared + len(where.places) * own


def fusing(point: Point) -> bool:
    return point.tower in ("fusion", "decoder")


def compacter_count(where: Sites) -> int:
    """`3 * (width + dim)` in each place and `terms^3` once."""
    return len(where.places) * 3 * (WIDTH + 4) + 4**3


def hyperformer_count(per_site: bool) -> Callable[[Sites], int]:
    """The formula of `Hyperformer` with e = 6, h = 20, p = 4."""
    e, h, p = 6, 20, 4

    def count(where: Sites) -> int:
        total = e
        for tower in {point.tower for point in where.places}:
            layers = len({point.layer for point in where.places if point.tower == tower})
            sites = len({point.site for point in where.places if point.tower == tower})
            total += (layers if per_site else layers + sites) * e
            total += ((2 if per_site else 3) * e * h + h) + (h * p + p) + 2 * p
            total += (sites if per_site else 1) * (p + 1) * (2 * WIDTH * 4 + WIDTH + 4)
        return total

    return count


def uniadapter_count(over: Sequence[str]) -> Callable[[Sites], int]:
    """A norm and a projection down; one up in each place, two and a norm where it fuses."""
    return lambda where: (
        owners(where, over) * (2 * WIDTH + DOWN) + sum(2 * UP + 2 * WIDTH if fusing(p) else UP for p in where.places)
    )


GENERATED = {"task_embedding": 6, "hidden": 20, "projected": 4}
OVER: dict[str, list[str]] = {"layers": ["layer"], "layers and towers": ["layer", "tower"]}
RULES = {
    f"bottleneck, {what} shared over {name}": Row(
        method("bottleneck", dim=4, share={"what": what, "over": over, "columns": 8}), count(over)
    )
    for name, over in OVER.items()
    for what, count in (
        ("down", lambda over: halves(DOWN, UP, over)),
        ("up", lambda over: halves(UP, DOWN, over)),
        ("columns", lambda over: halves(COMMON, DOWN + UP - COMMON, over)),
        ("all", lambda over: halves(DOWN + UP, 0, over)),
    )
}
ROWS: dict[str, Row] = {
    "houlsby": Row(method("houlsby", dim=4), each(Bottleneck.count(WIDTH, 4))),
    "pfeiffer": Row(method("pfeiffer", dim=4), each(Bottleneck.count(WIDTH, 4))),
    "parallel": Row(method("parallel", dim=4), each(Bottleneck.count(WIDTH, 4))),
    "lora_adapter": Row(method("lora_adapter", dim=8), each(2 * 4 * (WIDTH + 8) + WIDTH + 8)),
    "low_rank": Row(method("low_rank", dim=8), each(2 * 4 * (WIDTH + 8) + WIDTH + 8)),
    "compacter": Row(method("compacter", dim=4), compacter_count),
    "compacter, all shared over layers": Row(
        method("compacter", dim=4, share={"what": "all", "over": ["layer"]}),
        lambda where: owners(where, ["layer"]) * 3 * (WIDTH + 4) + 4**3,
    ),
    "hyperformer": Row(method("hyperformer", dim=4, options=GENERATED), hyperformer_count(per_site=False)),
    "hyperformer, per site": Row(
        method("hyperformer", dim=4, options={**GENERATED, "per_site": True}), hyperformer_count(per_site=True)
    ),
    "uniadapter": Row(method("uniadapter", dim=4), uniadapter_count(["tower"])),
    "uniadapter, nothing shared": Row(method("uniadapter", dim=4, share={"what": "none"}), uniadapter_count([])),
    "cma": Row(method("cma", dim=4, share={"columns": 8}), halves(COMMON, DOWN + UP - COMMON, ["tower"])),
    **RULES,
}
