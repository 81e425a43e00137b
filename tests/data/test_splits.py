"""Splits keep images together; caps nest."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vlatrain.data import FilePicture, Sample
from vlatrain.data.splits import cap, few_shots, hold_out


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


def labelled(labels):
    return [Sample(str(index), FilePicture(f"{index}.png"), label=label) for index, label in enumerate(labels)]


def shares(samples):
    counts = Counter(sample.label for sample in samples)
    return {label: count / counts.total() for label, count in counts.items()}


LABELS = st.lists(st.sampled_from("aaaaaabbbc"), min_size=4, max_size=60)


@given(LABELS, st.integers(1, 40), st.integers(0, 5))
def test_a_hold_out_by_class_keeps_each_share(labels, count, seed):
    samples = labelled(labels)
    rest, held = hold_out(samples, count, seed, by_class=True)
    assert sorted([*rest, *held], key=lambda s: int(s.id)) == samples
    assert {s.label for s in rest} == set(labels), "each class keeps an image"
    taken, there = Counter(s.label for s in held), Counter(labels)
    if (
        count <= len(labels) / 2
    ):  # of fewer than all, each class gives its share, to one or, where it may not, not at all
        for label in there:
            assert abs(taken[label] - len(held) * there[label] / len(labels)) <= 1 + (len(there) - 1)


@given(LABELS, st.integers(1, 30), st.integers(0, 30), st.integers(0, 5))
def test_a_cap_by_class_keeps_each_share_and_nests(labels, size, more, seed):
    samples = labelled(labels)
    some, others = cap(samples, size, seed, by_class=True), cap(samples, size + more, seed, by_class=True)
    assert len(some) == min(size, len(labels))
    assert {s.id for s in some} <= {s.id for s in others}
    assert [int(s.id) for s in some] == sorted(int(s.id) for s in some)
    taken, there = Counter(s.label for s in some), Counter(labels)
    assert all(abs(taken[label] - len(some) * there[label] / len(labels)) <= len(there) for label in there)


def test_shares_by_class_are_exact_where_they_can_be():
    samples = labelled(["a"] * 70 + ["b"] * 20 + ["c"] * 10)
    for seed in range(5):
        assert shares(hold_out(samples, 10, seed, by_class=True)[1]) == {"a": 0.7, "b": 0.2, "c": 0.1}
        assert shares(cap(samples, 50, seed, by_class=True)) == {"a": 0.7, "b": 0.2, "c": 0.1}
    assert hold_out(samples, 10, 0, by_class=True) != hold_out(samples, 10, 1, by_class=True)


def test_an_image_with_several_samples_stays_whole_by_class():
    samples = [Sample(str(i), FilePicture(f"{i // 3}.png"), label="ab"[i % 3 == 2]) for i in range(60)]
    rest, held = hold_out(samples, 12, 0, by_class=True)
    assert len(held) == 12
    assert not {s.image for s in rest} & {s.image for s in held}


@given(LABELS, st.integers(1, 8), st.integers(0, 8), st.integers(0, 3))
def test_few_shots_nest_and_are_so_many_of_each_class(labels, shots, more, seed):
    samples = labelled(labels)
    some, others = few_shots(samples, shots, str(seed)), few_shots(samples, shots + more, str(seed))
    there = Counter(labels)
    assert Counter(s.label for s in some) == {label: min(shots, there[label]) for label in there}
    assert {s.id for s in some} <= {s.id for s in others}
    assert [int(s.id) for s in some] == sorted(int(s.id) for s in some)
    without = [s for s in samples if s.label != "a"]
    assert few_shots(without, shots, str(seed)) == [s for s in some if s.label != "a"]


def test_samples_that_share_an_image_through_others_stay_together():
    pairs = [("a", "b"), ("c", "d"), ("b", "e"), ("f", "f"), ("e", "g")]
    made = [Sample(str(n), FilePicture(one), more=(FilePicture(two),)) for n, (one, two) in enumerate(pairs)]
    for seed in range(8):
        rest, held = hold_out(made, 1, seed)
        assert {frozenset({"0", "2", "4"}) & {one.id for one in side} for side in (rest, held)} == {
            frozenset(),
            frozenset({"0", "2", "4"}),
        }
