"""Patterns select points; what they cannot select is an error that names the nearest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlatrain.config import UserError
from vlatrain.injection.points import Point, Stack, everything, parse, select

TOWERS = {"vision": Stack(12, ("attn", "ffn")), "decoder": Stack(6, ("attn", "cross", "ffn"))}


@pytest.mark.parametrize(
    ("patterns", "count", "first"),
    [
        (["vision.*.attn"], 12, "vision.0.attn"),
        (["decoder.2-4.{cross,ffn}"], 6, "decoder.2.cross"),
        (["decoder"], 18, "decoder.0.attn"),
        (["vision.last4.*"], 8, "vision.8.attn"),
        (["decoder.last99.cross"], 6, "decoder.0.cross"),
        (["vision.first2.ffn", "vision.0.*"], 3, "vision.0.attn"),
        (["{text,decoder}.{0,4-5}.attn"], 3, "decoder.0.attn"),
        (["decoder.5.cross", "vision.0.attn"], 2, "vision.0.attn"),
        (["*"], 42, "vision.0.attn"),
    ],
)
def test_select(patterns: list[str], count: int, first: str) -> None:
    points = select(patterns, TOWERS)
    assert (len(points), str(points[0])) == (count, first)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("vision.*.cross", "matches nothing"),
        ("visoin.3.attn", "nearest: vision.3.attn"),
        ("decoder.6.cross", "there are vision.0-11.{attn,ffn}; decoder.0-5.{attn,cross,ffn}"),
        ("decoder.x.cross", "'x' is not a layer"),
        ("a.b.c.d", "expected tower.layer.site"),
        ("decoder.1.Cross!", "is not a site"),
        ("", "is not a tower"),
    ],
)
def test_refused(pattern: str, said: str) -> None:
    with pytest.raises(UserError, match="point pattern") as error:
        select([pattern], TOWERS)
    assert said in str(error.value)


def test_every_problem_at_once() -> None:
    with pytest.raises(UserError) as error:
        select(["nothing.*.attn", "vision.0.attn", "decoder.x"], TOWERS)
    assert len(error.value.problems) == 2


@given(st.sampled_from(everything(TOWERS)))
def test_a_point_selects_itself(point: Point) -> None:
    assert select([str(point)], TOWERS) == [point] == [Point.parse(str(point))]
    assert parse(str(point)).select(TOWERS) == [point]


def test_a_projection_is_a_point_of_its_own() -> None:
    towers = {"vision": replace(TOWERS["vision"], projection=True), "decoder": TOWERS["decoder"]}
    (point,) = select(["vision.projection"], towers)
    assert point == Point("vision", 12, "projection") == Point.parse(str(point))
    assert select(["{vision,decoder}.projection"], towers) == [point]
    assert select(["vision.projection", "vision.11.ffn", "decoder.0.attn"], towers)[-1] == point
    assert point not in select(["*", "vision", "vision.last1"], towers)
    with pytest.raises(UserError, match=r"'decoder.projection' matches nothing.*; vision.projection$"):
        select(["decoder.projection"], towers)
