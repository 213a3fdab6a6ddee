"""Windows of shards: each epoch is a permutation that reads a few shards at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data.orders.windowed import WindowedOrder

SEEDS = st.integers(0, 2**31 - 1)


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
