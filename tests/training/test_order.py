from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlatrain.training.order import Order

SIZES = {"samples": st.integers(1, 40), "batch": st.integers(1, 5), "accumulate": st.integers(1, 3)}


@given(**SIZES, processes=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_sample_once(samples: int, batch: int, accumulate: int, processes: int) -> None:
    order = Order(samples, batch, accumulate, processes)
    seen = []
    for step in range(order.steps_per_epoch):
        ranks = [order.micro_batches(step, rank) for rank in range(processes)]
        assert len({len(passes) for passes in ranks}) == 1, "all processes make the same number of passes"
        assert 1 <= len(ranks[0]) <= accumulate
        counted = [index for passes in ranks for one in passes if one.weight for index in one.indices]
        assert sorted(counted) == sorted(order.step(step))
        seen += counted
    assert sorted(seen) == list(range(samples))


@given(**SIZES, processes=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_weighted_means_are_the_mean_over_the_step(samples: int, batch: int, accumulate: int, processes: int) -> None:
    order = Order(samples, batch, accumulate, processes)
    for step in range(order.steps_per_epoch):
        passes = [one for rank in range(processes) for one in order.micro_batches(step, rank)]
        averaged = sum(one.weight * sum(one.indices) / len(one.indices) for one in passes) / processes
        chosen = order.step(step)
        assert averaged == pytest.approx(sum(chosen) / len(chosen))


@given(samples=st.integers(1, 40), batch=st.integers(1, 5), accumulate=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_two_processes_see_what_one_with_twice_the_batch_sees(samples: int, batch: int, accumulate: int) -> None:
    one, two = Order(samples, 2 * batch, accumulate), Order(samples, batch, accumulate, processes=2)
    for step in range(2 * one.steps_per_epoch):
        assert one.step(step) == two.step(step)
        for mine, *theirs in zip(
            one.micro_batches(step), two.micro_batches(step, 0), two.micro_batches(step, 1), strict=True
        ):
            together = [index for one in theirs if one.weight for index in one.indices]
            assert list(mine.indices) == together


def test_the_order_is_a_function_of_seed_and_step() -> None:
    one = Order(20, 3, seed=4)
    there = [one.step(step) for step in range(14)]
    again = Order(20, 3, seed=4)
    assert [again.step(step) for step in reversed(range(14))] == there[::-1]
    assert there[:7] != there[7:], "epochs differ"
    assert Order(20, 3, seed=5).step(0) != there[0]
