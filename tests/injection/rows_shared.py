"""Rows of the bottleneck's relatives that share: by design (Compacter, HyperFormer, UniAdapter), or by the sharing rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.injection.table import TOWERS_DIFFER, Row, each, method, widths
from vlatrain.injection.points import Place, Point, Sites

Count = Callable[[Place], int]


def down(at: Place) -> int:
    """The first half of a plain one with dim 4."""
    return at.width * 4 + 4


def up(at: Place) -> int:
    """The second."""
    return 4 * at.width + at.width


def common(at: Place) -> int:
    """Eight shared columns."""
    return (4 + 1) * 8


def owners(where: Sites, over: Sequence[str]) -> Sites:
    """The places that are left, where those that differ only in `over` count as one."""
    left = {}
    for point, place in where.places.items():
        left.setdefault(
            tuple(getattr(point, part) for part in ("tower", "layer", "site") if part not in over), (point, place)
        )
    return Sites(dict(left.values()))


def halves(shared: Count, own: Count, over: Sequence[str]) -> Callable[[Sites], int]:
    """A part of its own in each place, and a shared one stored once."""
    return lambda where: each(shared)(owners(where, over)) + each(own)(where)


def fusing(point: Point) -> bool:
    return point.tower in ("fusion", "decoder")


def compacter_count(where: Sites) -> int:
    """`3 * (width + dim)` in each place and `terms^3` once."""
    return each(lambda at: 3 * (at.width + 4))(where) + 4**3


def hyperformer_count(per_site: bool) -> Callable[[Sites], int]:
    """The formula of `Hyperformer` with e = 6, h = 20, p = 4."""
    e, h, p = 6, 20, 4

    def count(where: Sites) -> int:
        total = e
        for tower, width in widths(where).items():
            layers = len({point.layer for point in where.places if point.tower == tower})
            sites = len({point.site for point in where.places if point.tower == tower})
            total += (layers if per_site else layers + sites) * e
            total += ((2 if per_site else 3) * e * h + h) + (h * p + p) + 2 * p
            total += (sites if per_site else 1) * (p + 1) * (2 * width * 4 + width + 4)
        return total

    return count


def uniadapter_count(over: Sequence[str]) -> Callable[[Sites], int]:
    """A norm and a projection down; one up in each place, two and a norm where it fuses."""
    return lambda where: (
        each(lambda at: 2 * at.width + down(at))(owners(where, over))
        + sum(2 * up(at) + 2 * at.width if fusing(point) else up(at) for point, at in where.places.items())
    )


def plain(at: Place) -> int:
    return down(at) + up(at)


def columns(over: Sequence[str]) -> Callable[[Sites], int]:
    return halves(common, lambda at: plain(at) - common(at), over)


GENERATED = {"task_embedding": 6, "hidden": 20, "projected": 4}
OVER: dict[str, list[str]] = {"layers": ["layer"], "layers and towers": ["layer", "tower"]}
RULES = {
    f"bottleneck, {what} shared over {name}": Row(
        method("bottleneck", dim=4, share={"what": what, "over": over, "columns": 8}),
        count(over),
        unfit=TOWERS_DIFFER if "tower" in over and what != "columns" else {},
    )
    for name, over in OVER.items()
    for what, count in (
        ("down", lambda over: halves(down, up, over)),
        ("up", lambda over: halves(up, down, over)),
        ("columns", columns),
        ("all", lambda over: halves(plain, lambda at: 0, over)),
    )
}
ROWS: dict[str, Row] = {
    "houlsby": Row(method("houlsby", dim=4), each(plain)),
    "pfeiffer": Row(method("pfeiffer", dim=4), each(plain)),
    "parallel": Row(method("parallel", dim=4), each(plain)),
    "lora_adapter": Row(method("lora_adapter", dim=8), each(lambda at: 2 * 4 * (at.width + 8) + at.width + 8)),
    "low_rank": Row(method("low_rank", dim=8), each(lambda at: 2 * 4 * (at.width + 8) + at.width + 8)),
    "compacter": Row(method("compacter", dim=4), compacter_count),
    "compacter, all shared over layers": Row(
        method("compacter", dim=4, share={"what": "all", "over": ["layer"]}),
        lambda where: each(lambda at: 3 * (at.width + 4))(owners(where, ["layer"])) + 4**3,
    ),
    "hyperformer": Row(method("hyperformer", dim=4, options=GENERATED), hyperformer_count(per_site=False)),
    "hyperformer, per site": Row(
        method("hyperformer", dim=4, options={**GENERATED, "per_site": True}), hyperformer_count(per_site=True)
    ),
    "uniadapter": Row(method("uniadapter", dim=4), uniadapter_count(["tower"]), unfit=TOWERS_DIFFER),
    "uniadapter, nothing shared": Row(method("uniadapter", dim=4, share={"what": "none"}), uniadapter_count([])),
    "cma": Row(method("cma", dim=4, share={"columns": 8}), columns(["tower"])),
    **RULES,
}
