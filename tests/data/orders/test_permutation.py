"""The sample at a position is a function of the seed and the position alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data.orders.permutation import Order

SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.integers(1, 700)


@given(n=SIZES, seed=SEEDS, epoch=st.integers(0, 2**30))
def test_each_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert sorted(Order(n, seed).sample(np.arange(n) + epoch * n)) == list(range(n))


@given(n=SIZES, seed=SEEDS, begin=st.integers(0, 10**6), world=st.integers(1, 9), rows=st.integers(1, 9))
def test_several_workers_together_read_what_one_worker_does(
    n: int, seed: int, begin: int, world: int, rows: int
) -> None:
    order, batch = Order(n, seed), world * rows
    parts = [order.sample(begin + rank * rows + np.arange(rows)) for rank in range(world)]
    assert np.array_equal(np.concatenate(parts), order.sample(begin + np.arange(batch)))


@given(n=SIZES, seed=SEEDS, position=st.lists(st.integers(0, 10**9), min_size=1, max_size=50))
def test_a_position_does_not_depend_on_the_batch(n: int, seed: int, position: list[int]) -> None:
    order = Order(n, seed)
    together = order.sample(np.array(position))
    assert together.tolist() == [int(order.sample(np.array([p]))[0]) for p in position]


def test_epochs_and_seeds_differ() -> None:
    orders = [Order(100, seed).sample(np.arange(100) + epoch * 100).tolist() for seed in range(5) for epoch in range(5)]
    assert len({tuple(order) for order in orders}) == 25


@pytest.mark.parametrize("n", [5, 70])
def test_every_sample_is_at_every_position_equally_often(n: int) -> None:
    epochs = 20_000
    samples = Order(n, 3).sample(np.arange(n * epochs)).reshape(epochs, n)
    counts = np.stack([(samples == sample).sum(0) for sample in range(n)])
    chi2, degrees = ((counts - epochs / n) ** 2 / (epochs / n)).sum(), (n - 1) ** 2
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees)


def test_neighbors_in_the_index_are_not_neighbors_in_the_order() -> None:
    samples = Order(100_000, 0).sample(np.arange(100_000))
    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(samples)) == 1).sum() < 20  # 2 are expected


def test_a_million_samples_are_a_permutation() -> None:
    n = 1_000_003
    samples = Order(n, 1).sample(np.arange(n))
    assert np.array_equal(np.sort(samples), np.arange(n))


def test_an_order_of_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Order(0, 0)
