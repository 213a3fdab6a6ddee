"""A position means one sample, whatever asks for it."""

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


@given(n=SIZES, seed=SEEDS, begin=st.integers(0, 10**6), world=st.integers(1, 9), share=st.integers(1, 9))
def test_workers_parts_are_those_of_one_worker(n: int, seed: int, begin: int, world: int, share: int) -> None:
    order, batch = Order(n, seed), world * share
    parts = [order.sample(begin + rank * share + np.arange(share)) for rank in range(world)]
    assert np.array_equal(np.concatenate(parts), order.sample(begin + np.arange(batch)))


@given(n=SIZES, seed=SEEDS, position=st.lists(st.integers(0, 10**9), min_size=1, max_size=50))
def test_a_position_does_not_depend_on_its_company(n: int, seed: int, position: list[int]) -> None:
    order = Order(n, seed)
    together = order.sample(np.array(position))
    assert together.tolist() == [int(order.sample(np.array([p]))[0]) for p in position]


def test_epochs_and_seeds_differ() -> None:
    orders = [Order(100, seed).sample(np.arange(100) + epoch * 100).tolist() for seed in range(5) for epoch in range(5)]
    assert len({tuple(order) for order in orders}) == 25


@pytest.mark.parametrize("n", [5, 70])
def test_every_sample_comes_to_every_place_equally_often(n: int) -> None:
    epochs = 20_000
    samples = Order(n, 3).sample(np.arange(n * epochs)).reshape(epochs, n)
    counts = np.stack([(samples == sample).sum(0) for sample in range(n)])
    chi2, freedom = ((counts - epochs / n) ** 2 / (epochs / n)).sum(), (n - 1) ** 2
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)


def test_neighbors_in_the_index_are_not_neighbors_in_the_order() -> None:
    samples = Order(100_000, 0).sample(np.arange(100_000))
    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(samples)) == 1).sum() < 20  # 2 are expected


def test_a_million_samples_are_a_permutation() -> None:
    n = 1_000_003
    samples = Order(n, 1).sample(np.arange(n))
    assert np.array_equal(np.sort(samples), np.arange(n))


def test_no_samples_are_refused() -> None:
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
def test_a_windows_shards_appear_in_that_window_only(sizes: list[int], window: int, seed: int, epoch: int) -> None:
    n, shard_of = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    shards = shard_of[windowed(sizes, window, seed).sample(np.arange(n) + epoch * n)]
    begin, seen = 0, set()
    while begin < n:  # a window ends where its first `window` shards have been read
        left, group = shards[begin:], list(dict.fromkeys(shards[begin:].tolist()))
        size, taken = 0, 0
        for taken in range(1, min(window, len(group)) + 1):
            size = sum(sizes[s] for s in group[:taken])
        assert set(left[:size].tolist()) == set(group[:taken]) and not seen & set(group[:taken])
        seen |= set(group[:taken])
        begin += size


@given(
    sizes=SHARDS,
    window=st.integers(1, 15),
    seed=SEEDS,
    begin=st.integers(0, 10**6),
    world=st.integers(1, 9),
    share=st.integers(1, 9),
)
def test_workers_parts_of_windows_are_those_of_one_worker(
    sizes: list[int], window: int, seed: int, begin: int, world: int, share: int
) -> None:
    order, whole = windowed(sizes, window, seed), windowed(sizes, window, seed)
    parts = [order.sample(begin + rank * share + np.arange(share)) for rank in range(world)]
    assert np.array_equal(np.concatenate(parts), whole.sample(begin + np.arange(world * share)))


def test_a_windows_samples_are_shuffled_among_all_of_its_shards() -> None:
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
def test_each_data_set_of_a_mixture_has_exact_epochs_of_its_own(
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
def test_quotas_are_the_weights_to_within_one_sample_a_block(weights: list[float]) -> None:
    quota, exact = quotas(weights), np.array(weights) / sum(weights) * MIXTURE_BLOCK
    assert quota.sum() == MIXTURE_BLOCK and (np.abs(quota - exact) < 1).all()


@given(members=MEMBERS, seed=SEEDS, position=st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
def test_a_position_in_a_mixture_does_not_depend_on_its_company(
    members: list[tuple[int, float]], seed: int, position: list[int]
) -> None:
    sizes = [n for n, _ in members]
    mixed = InterleavedOrder([Order(n, seed) for n in sizes], sizes, [w for _, w in members], seed)
    assert mixed.sample(np.array(position)).tolist() == [int(mixed.sample(np.array([p]))[0]) for p in position]


@given(
    labeled=st.lists(st.booleans(), min_size=2, max_size=300).filter(lambda some: 0 < sum(some) < len(some)),
    share=st.floats(0.001, 0.999),
    seed=SEEDS,
    begin=st.integers(0, 50),
)
def test_samples_with_labels_have_their_exact_share_and_each_group_whole_epochs(
    labeled: list[bool], share: float, seed: int, begin: int
) -> None:
    has = np.array(labeled)
    order = LabelOversamplingOrder(has, share, seed)
    samples = order.sample(np.arange(begin * MIXTURE_BLOCK, (begin + 1) * MIXTURE_BLOCK))
    assert abs(has[samples].sum() - share * MIXTURE_BLOCK) < 1
    for group in (has, ~has):
        often = np.bincount(samples[group[samples]], minlength=len(has))[group]
        assert often.max() - often.min() <= 2  # an epoch may end and another begin within the block
    assert samples[7] == order.sample(np.array([begin * MIXTURE_BLOCK + 7]))[0]


def test_a_weight_that_gets_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="a weight below"):
        InterleavedOrder([Order(5, 0), Order(5, 0)], [5, 5], [1, 1e-9], 0)
