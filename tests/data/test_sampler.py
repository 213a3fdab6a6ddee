"""The sample at a position is a function of the seed and the position alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data.sampler import MIXTURE_BLOCK, InterleavedOrder, LabelOversamplingOrder, Order, WindowedOrder, quotas

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


def windowed(sizes: list[int], window: int, seed: int) -> WindowedOrder:
    return WindowedOrder(np.array(sizes), window, seed)


SHARDS = st.lists(st.integers(0, 90), min_size=1, max_size=12).filter(any)


@given(sizes=SHARDS, window=st.integers(1, 15), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_each_windowed_epoch_is_a_permutation(sizes: list[int], window: int, seed: int, epoch: int) -> None:
    n = sum(sizes)
    assert sorted(windowed(sizes, window, seed).sample(np.arange(n) + epoch * n)) == list(range(n))


@given(sizes=SHARDS, window=st.integers(1, 15), seed=SEEDS, epoch=st.integers(0, 1000))
def test_the_shards_of_a_window_are_read_in_that_window_only(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    n, shard_of = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    shards = shard_of[windowed(sizes, window, seed).sample(np.arange(n) + epoch * n)]
    begin, seen = 0, set()
    while begin < n:  # a window ends after its first `window` shards
        left, group = shards[begin:], list(dict.fromkeys(shards[begin:].tolist()))
        first = set(group[:window])
        size = sum(sizes[s] for s in first)
        assert set(left[:size].tolist()) == first and not seen & first
        seen |= first
        begin += size


@given(
    sizes=SHARDS,
    window=st.integers(1, 15),
    seed=SEEDS,
    begin=st.integers(0, 10**6),
    world=st.integers(1, 9),
    rows=st.integers(1, 9),
)
def test_several_workers_together_read_the_windows_that_one_worker_does(
    sizes: list[int], window: int, seed: int, begin: int, world: int, rows: int
) -> None:
    order, whole = windowed(sizes, window, seed), windowed(sizes, window, seed)
    parts = [order.sample(begin + rank * rows + np.arange(rows)) for rank in range(world)]
    assert np.array_equal(np.concatenate(parts), whole.sample(begin + np.arange(world * rows)))


def test_the_samples_of_a_window_are_shuffled_over_all_of_its_shards() -> None:
    shards = windowed([1000] * 8, 4, 0).sample(np.arange(4000)) // 1000
    for quarter in shards.reshape(4, 1000):
        assert (np.bincount(quarter, minlength=8)[np.unique(shards)] > 150).all()  # 250 are expected


def test_windows_differ_between_epochs_and_seeds() -> None:
    orders = [
        tuple(windowed([50] * 6, 2, seed).sample(np.arange(300) + epoch * 300))
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 16


MEMBERS = st.lists(st.tuples(st.integers(1, 300), st.floats(0.05, 10)), min_size=1, max_size=5)


@given(members=MEMBERS, seed=SEEDS, begin=st.integers(0, 50))
def test_each_data_set_of_a_mixture_has_its_own_exact_epochs(
    members: list[tuple[int, float]], seed: int, begin: int
) -> None:
    sizes, weights = [n for n, _ in members], [w for _, w in members]
    mixed = InterleavedOrder([Order(n, seed, str(i)) for i, n in enumerate(sizes)], sizes, weights, seed)
    samples, first = mixed.sample(np.arange(begin * MIXTURE_BLOCK, (begin + 2) * MIXTURE_BLOCK)), 0
    for number, (n, quota) in enumerate(zip(sizes, quotas(weights), strict=True)):
        mine = samples[(samples >= first) & (samples < first + n)] - first
        expected = Order(n, seed, str(number)).sample(np.arange(begin * quota, (begin + 2) * quota))
        assert np.array_equal(np.sort(mine), np.sort(expected))
        first += n


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_quotas_equal_the_weights_to_within_one_sample_per_block(weights: list[float]) -> None:
    quota, exact = quotas(weights), np.array(weights) / sum(weights) * MIXTURE_BLOCK
    assert quota.sum() == MIXTURE_BLOCK and (np.abs(quota - exact) < 1).all()


@given(members=MEMBERS, seed=SEEDS, position=st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
def test_a_position_in_a_mixture_does_not_depend_on_the_batch(
    members: list[tuple[int, float]], seed: int, position: list[int]
) -> None:
    sizes = [n for n, _ in members]
    mixed = InterleavedOrder([Order(n, seed) for n in sizes], sizes, [w for _, w in members], seed)
    assert mixed.sample(np.array(position)).tolist() == [int(mixed.sample(np.array([p]))[0]) for p in position]


@given(
    labeled=st.lists(st.booleans(), min_size=2, max_size=300).filter(lambda some: 0 < sum(some) < len(some)),
    fraction=st.floats(0.001, 0.999),
    seed=SEEDS,
    begin=st.integers(0, 50),
)
def test_labeled_samples_are_an_exact_fraction_and_each_group_has_whole_epochs(
    labeled: list[bool], fraction: float, seed: int, begin: int
) -> None:
    has = np.array(labeled)
    order = LabelOversamplingOrder(has, fraction, seed)
    samples = order.sample(np.arange(begin * MIXTURE_BLOCK, (begin + 1) * MIXTURE_BLOCK))
    assert abs(has[samples].sum() - fraction * MIXTURE_BLOCK) < 1
    for group in (has, ~has):
        counts = np.bincount(samples[group[samples]], minlength=len(has))[group]
        assert counts.max() - counts.min() <= 2  # an epoch may end and another start within the block
    assert samples[7] == order.sample(np.array([begin * MIXTURE_BLOCK + 7]))[0]


def test_a_weight_too_small_for_a_single_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="a weight is below"):
        InterleavedOrder([Order(5, 0), Order(5, 0)], [5, 5], [1, 1e-9], 0)
