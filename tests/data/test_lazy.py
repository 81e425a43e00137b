"""What is done with lazy samples gives what is done with the same samples in a list."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlatrain.data import arrow_columns
from vlatrain.data.images import FilePicture
from vlatrain.data.lazy import (
    Images,
    Lazy,
    Selection,
    column,
    distinct,
    joined,
    named,
    of_subtask,
    pictures,
    select,
)
from vlatrain.data.mapped import opened, write
from vlatrain.data.sample import Sample, fingerprint, texts_of


@pytest.fixture(params=[arrow_columns.NEAR, 0], ids=["at once", "one by one"])
def both(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[list[Sample], Sequence[Sample]]]:
    """Two splits, held and mapped."""
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(arrow_columns, "NEAR", request.param)
    shown = [FilePicture(tmp_path / f"{number}.png") for number in range(5)]
    for picture in shown:
        Image.new("RGB", (2, 3)).save(picture.path)

    def samples(count: int, key: str) -> list[Sample]:
        return [
            Sample(f"{key}{n}", shown[n * 7 % 5], f"q{n}", ("a",) * (n % 3), label=f"c{n % 4}", source=f"t:{n}")
            for n in range(count)
        ]

    held = {"train": samples(23, "t"), "eval": samples(7, "e")}
    (tmp_path / "files").mkdir()
    write(tmp_path / "files", held, [], lambda path: None, [])
    mapped = opened(tmp_path / "files")[0]
    return {split: (held[split], mapped[split]) for split in held}


def same(lazy: Sequence[Sample], held: Sequence[Sample]) -> None:
    """The one is lazy, and both have the same."""
    assert isinstance(lazy, Lazy)
    assert not isinstance(held, Lazy)
    assert list(lazy) == list(held)
    assert [lazy[place] for place in range(-len(held), len(held))] == [
        held[place] for place in range(-len(held), len(held))
    ]
    for field in ("id", "label", "subtask", "answers", "source"):
        assert list(column(lazy, field)) == list(column(held, field))
    assert list(pictures(lazy)) == list(pictures(held))
    assert list(Images(lazy)[1::3]) == [one.image for one in held[1::3]]
    assert list(lazy[2:9:2]) == list(held[2:9:2])
    assert fingerprint(lazy) == fingerprint(held) == fingerprint(lazy)
    assert list(texts_of(lazy)) == list(texts_of(held))
    with pytest.raises(IndexError):
        lazy[len(held)]


def test_as_a_list(both: dict[str, tuple[list[Sample], Sequence[Sample]]]) -> None:
    held, lazy = both["train"]
    same(lazy, held)
    places = [random.Random(1).randrange(23) for _ in range(40)]
    same(select(lazy, places), select(held, places))
    same(select(select(lazy, places), [3, 1, 1]), select(select(held, places), [3, 1, 1]))
    assert list(distinct(select(held, sorted(places)))) == list(distinct(select(lazy, sorted(places))))
    assert distinct(lazy) is lazy


def test_subtasks_are_joined(both: dict[str, tuple[list[Sample], Sequence[Sample]]]) -> None:
    names = {"train": "vqa", "eval": "cap"}
    more = [Sample("9", FilePicture("x.png"), label="c")]
    held = joined([*(named(both[split][0], name) for split, name in names.items()), named(more, "few")])
    lazy = joined([*(named(both[split][1], name) for split, name in names.items()), named(more, "few")])
    assert [one.id for one in held[22:24]] == ["vqa/t22", "cap/e0"]
    assert list(lazy) == list(held)
    assert fingerprint(lazy) == fingerprint(held)
    for name in (*names.values(), "few", "none"):
        assert (
            list(of_subtask(lazy, name)) == list(of_subtask(held, name)) == [one for one in held if one.subtask == name]
        )
    repeated = [30, 5, 5, 29]
    assert list(select(lazy, repeated)) == list(select(held, repeated))
    assert {one.path for one in pictures(lazy)} == {one.path for one in pictures(held)}  # type: ignore[attr-defined]


def test_stamps_tell_selections_apart(both: dict[str, tuple[list[Sample], Sequence[Sample]]]) -> None:
    _, lazy = both["train"]
    few = [replace(both["eval"][0][0], question=text) for text in ("a", "b")]
    made = [lazy, lazy[1:], lazy[:5], select(lazy, [1, 0]), named(lazy, "a"), *(joined([lazy, [one]]) for one in few)]
    stamps = [one.stamp for one in made if isinstance(one, Lazy)]
    assert len(set(stamps)) == len(made)
    assert Selection([("", lazy)], np.arange(3)).stamp == select(lazy, range(3)).stamp  # type: ignore
