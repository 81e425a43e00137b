"""Splits keep images together; caps nest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlatrain.data import FilePicture, Sample
from vlatrain.data.splits import cap, hold_out


def samples_of(images):
    return [Sample(str(index), FilePicture(str(image))) for index, image in enumerate(images)]


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(0, 50), st.integers(0, 5))
def test_hold_out(images, count, seed):
    samples = samples_of(images)
    rest, held = hold_out(samples, count, seed)
    assert sorted([*rest, *held], key=lambda s: int(s.id)) == samples
    assert not {s.image for s in rest} & {s.image for s in held}
    assert [int(s.id) for s in rest] == sorted(int(s.id) for s in rest)
    if len(set(images)) > 1:
        assert rest
        assert held
        largest = max(images.count(image) for image in images)
        assert len(held) < max(1, count) + largest
    else:
        assert rest == samples
        assert not held
    assert hold_out(samples, count, seed) == (rest, held)


@given(st.integers(0, 30), st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_cap(count, size, larger, seed):
    samples = samples_of(range(count))
    some, more = cap(samples, size, seed), cap(samples, max(size, larger), seed)
    assert len(some) == min(count, size)
    assert {s.id for s in some} <= {s.id for s in more}
    assert [int(s.id) for s in some] == sorted(int(s.id) for s in some)
    assert cap(samples, None, seed) == samples


def test_the_draws_are_the_same_on_every_machine_and_python():
    samples = samples_of(range(10))
    assert [s.id for s in hold_out(samples, 3, seed=0)[1]] == ["5", "7", "9"]
    assert [s.id for s in cap(samples, 3, seed=0)] == ["0", "1", "3"]
