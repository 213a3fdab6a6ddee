"""Lanes: any samples, lanes and workers give exact epochs, and each lane reads its own part of the shards."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtgen.data.orders.interleaved import MIXTURE_BLOCK, quotas
from mtgen.data.orders.lanes import LaneOrder, Lanes
from mtgen.data.orders.permutation import SampleOrder
from mtgen.data.orders.policy import OrderPolicy

SEEDS = st.integers(0, 2**31 - 1)
LANES = st.builds(Lanes, st.integers(1, 12), st.integers(1, 7))
SHARDS = st.lists(st.integers(0, 90), min_size=1, max_size=20).filter(any)
WINDOWS = st.integers(1, 400)
few = settings(max_examples=25)


def positions(begin: int, count: int) -> Any:
    return np.arange(begin, begin + count)


@given(lanes=LANES, begin=st.integers(0, 10**6), end=st.integers(0, 500))
def test_places_count_the_positions_of_a_lane(lanes: Lanes, begin: int, end: int) -> None:
    some = positions(begin, 200)
    assert np.array_equal(lanes.position(lanes.lane(some), lanes.place(some)), some)
    before, every = positions(0, end), np.arange(lanes.count)
    per_lane = np.bincount(lanes.lane(before), minlength=lanes.count)
    assert np.array_equal(lanes.places(every, end), per_lane)
    assert np.array_equal(lanes.places_before(every, end), np.cumsum(per_lane) - per_lane)


@pytest.mark.parametrize(
    ("rows", "lanes"), [(slice(0, 3), [0]), (slice(3, 9), [1, 2]), (slice(4, 8), [1, 2]), (slice(0, 12), [0, 1, 2, 3])]
)
def test_a_worker_has_the_lanes_of_its_rows(rows: slice, lanes: list[int]) -> None:
    assert list(Lanes(4, 3).of_rows(rows)) == lanes


@few
@given(sizes=SHARDS, lanes=LANES, window=WINDOWS, seed=SEEDS, epoch=st.integers(0, 10**6))
def test_each_epoch_has_every_sample_once(sizes: list[int], lanes: Lanes, window: int, seed: int, epoch: int) -> None:
    n = sum(sizes)
    samples = LaneOrder(np.array(sizes), lanes, window, seed).sample(positions(epoch * n, n))
    assert np.array_equal(np.sort(samples), np.arange(n))


def parts(order: SampleOrder, begin: int, batch: int, workers: int) -> Any:
    """The rows that these workers read of a global batch, each from an order of its own, together."""
    return np.concatenate([order.sample(part) for part in np.split(positions(begin, batch), workers)])


def policy(lanes: Lanes, window: int, seed: int) -> OrderPolicy:
    return OrderPolicy("lanes", seed, window, lanes)


def order_of(kind: str, lanes: Lanes, window: int, seed: int) -> SampleOrder:
    sizes, chosen = np.array([31, 0, 70, 8, 45]), policy(lanes, window, seed)
    if kind == "mixture":
        return chosen.mixed([sizes, np.array([12, 12]), np.array([3])], [3.0, 1.0, 0.5])
    if kind == "oversampled":
        return chosen.oversampled(sizes, np.arange(154) % 11 == 0, 0.4)
    return chosen.one(sizes)


@pytest.mark.parametrize("kind", ["one", "mixture", "oversampled"])
@given(workers=st.integers(1, 16), window=WINDOWS, seed=SEEDS, step=st.integers(0, 10**5))
@settings(max_examples=6)
def test_1_to_16_workers_read_the_same_global_batches(
    kind: str, workers: int, window: int, seed: int, step: int
) -> None:
    lanes = Lanes(48, 2 * workers)  # 5 or 7 workers do not divide the lanes: neighbors share some
    one, other = (order_of(kind, lanes, window, seed) for _ in range(2))
    alone = one.sample(positions(step * lanes.step, lanes.step))
    assert np.array_equal(parts(other, step * lanes.step, lanes.step, workers), alone)


@pytest.mark.parametrize("kind", ["one", "mixture", "oversampled"])
@given(lanes=LANES, window=WINDOWS, seed=SEEDS, begin=st.integers(0, 10**9))
@settings(max_examples=8)
def test_a_position_does_not_depend_on_what_was_read_before(
    kind: str, lanes: Lanes, window: int, seed: int, begin: int
) -> None:
    whole = order_of(kind, lanes, window, seed).sample(positions(begin, 40))
    resumed = order_of(kind, lanes, window, seed)
    assert np.array_equal(resumed.sample(positions(begin + 17, 23)), whole[17:])
    assert [int(resumed.sample(np.array([begin + p]))[0]) for p in (39, 0, 5)] == whole[[39, 0, 5]].tolist()


@few
@given(
    sizes=SHARDS,
    window=WINDOWS,
    seed=SEEDS,
    workers=st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]), min_size=1, max_size=6),
    data=st.data(),
)
def test_changes_of_the_number_of_workers_keep_every_sample_once(
    sizes: list[int], window: int, seed: int, workers: list[int], data: st.DataObject
) -> None:
    lanes, n, found, begin = Lanes(12, 2), sum(sizes), [], 0
    while begin < n:
        count = data.draw(st.sampled_from(workers))
        steps = data.draw(st.integers(1, 4))
        order = LaneOrder(np.array(sizes), lanes, window, seed)  # a restart
        for _ in range(steps):
            found.append(parts(order, begin, lanes.step, count))
            begin += lanes.step
    assert np.array_equal(np.sort(np.concatenate(found)[:n]), np.arange(n))


@given(
    shards=st.integers(30, 60), lanes=st.integers(1, 10), rows=st.integers(1, 5), seed=SEEDS, epoch=st.integers(0, 9)
)
@few
def test_a_lane_reads_its_part_of_the_shards(shards: int, lanes: int, rows: int, seed: int, epoch: int) -> None:
    size, layout = 20, Lanes(lanes, rows)
    n = shards * size
    order, read = LaneOrder(np.full(shards, size), layout, 50, seed), []
    for some in (positions(epoch * n, n), positions(0, n)):
        shard = order.sample(some) // size
        read.append([shard[layout.lane(some) == lane] for lane in range(lanes)])
    for mine, first in zip(*read, strict=True):
        assert abs(len(mine) - n / lanes) <= 2 * rows
        assert len(np.unique(mine)) <= -(-len(mine) // size) + 1
        assert len(np.union1d(mine, first)) <= -(-len(mine) // size) + 2  # the same in every epoch but for the ends


@given(window=st.integers(40, 200), seed=SEEDS, epoch=st.integers(0, 1000))
@few
def test_a_lane_shuffles_windows_and_reads_them_one_after_the_other(window: int, seed: int, epoch: int) -> None:
    lanes, size, shards = Lanes(3, 2), 10, 120
    n = size * shards
    all_positions = positions(epoch * n, n)
    order = LaneOrder(np.full(shards, size), lanes, window, seed)
    samples = order.sample(all_positions)[lanes.lane(all_positions) == 1]
    windows = len(samples) // window
    bounds = [w * len(samples) // windows for w in range(windows + 1)]
    assert np.diff(bounds).min() >= window
    spans = [set((samples[a:b] // size).tolist()) for a, b in zip(bounds, bounds[1:], strict=False)]
    for number, span in enumerate(spans):
        assert len(span) <= -(-(bounds[number + 1] - bounds[number]) // size) + 1
        assert all(len(span & later) <= 1 for later in spans[number + 1 :])  # the shard that two windows share
    assert (np.diff(samples[: bounds[1]]) == 1).mean() < 0.5


def test_windows_lanes_epochs_and_seeds_are_shuffled_differently() -> None:
    lanes = Lanes(2, 2)
    found = set()
    for seed in range(2):
        order = LaneOrder(np.full(8, 100), lanes, 100, seed)
        for epoch in range(2):
            samples = order.sample(positions(epoch * 800, 800))
            for lane in range(2):
                own = samples[lanes.lane(positions(0, 800)) == lane].reshape(4, 100)
                found |= {tuple(np.argsort(part)) for part in own}
    assert len(found) == 2 * 2 * 2 * 4


def test_more_lanes_than_samples_still_give_exact_epochs() -> None:
    order = LaneOrder(np.array([2, 3]), Lanes(16, 4), 1000, 1)
    samples = order.sample(positions(0, 5 * 200)).reshape(200, 5)
    assert (np.sort(samples, axis=1) == np.arange(5)).all()
    assert len({tuple(epoch) for epoch in samples.tolist()}) > 50


def test_an_order_of_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        LaneOrder(np.array([0, 0]), Lanes(2, 2), 8, 0)


@given(lanes=LANES, window=st.integers(50, 150), seed=SEEDS, step=st.integers(0, 10**4))
@few
def test_shards_are_requested_a_window_before_they_are_read(lanes: Lanes, window: int, seed: int, step: int) -> None:
    sizes = np.full(40, 50)
    n, order = int(sizes.sum()), LaneOrder(sizes, lanes, window, seed)
    run = n // lanes.count
    ahead = -(-run // max(run // window, 1))  # places of a lane
    some = positions(step * lanes.step, lanes.step)
    later = order.ahead(some)
    distance = -(-ahead // lanes.rows) * lanes.step
    assert np.array_equal(later, order.sample(some + distance))
    assert np.array_equal(lanes.lane(some), lanes.lane(some + distance))


@given(weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=4), lanes=LANES, seed=SEEDS, block=st.integers(0, 50))
@settings(max_examples=8)
def test_a_mixture_is_exact_within_each_lane(weights: list[float], lanes: Lanes, seed: int, block: int) -> None:
    sizes = [np.array([20 + 5 * number, 13]) for number in range(len(weights))]
    order = policy(lanes, 30, seed).mixed(sizes, weights)
    first = np.cumsum([0, *(int(shards.sum()) for shards in sizes)])
    place = np.arange(block * MIXTURE_BLOCK, (block + 1) * MIXTURE_BLOCK)
    own = lanes.position(np.full_like(place, block % lanes.count), place)
    member = np.searchsorted(first, order.sample(own), side="right") - 1
    assert np.bincount(member, minlength=len(weights)).tolist() == quotas(weights).tolist()


@given(lanes=LANES, seed=SEEDS)
@settings(max_examples=8)
def test_every_data_set_of_a_mixture_has_exact_epochs(lanes: Lanes, seed: int) -> None:
    sizes, blocks = [np.array([40, 37]), np.array([11, 12, 9])], 2
    order = policy(lanes, 25, seed).mixed(sizes, [2.0, 1.0])
    own = lanes.position(np.arange(lanes.count), np.arange(blocks * MIXTURE_BLOCK)[:, None])
    counts = np.bincount(order.sample(own.ravel()), minlength=77 + 32)
    for part, places in ((counts[:77], 667), (counts[77:], 333)):
        assert part.sum() == blocks * places * lanes.count
        assert part.max() - part.min() <= 1


@given(lanes=LANES, seed=SEEDS, fraction=st.floats(0.05, 0.95))
@settings(max_examples=8)
def test_oversampled_labels_are_exact_within_lanes_and_in_epochs(lanes: Lanes, seed: int, fraction: float) -> None:
    sizes = np.array([50, 3, 80, 40])
    labeled = np.random.default_rng(seed).random(173) < 0.2
    labeled[:2] = True, False
    order = policy(lanes, 25, seed).oversampled(sizes, labeled, fraction)
    own = lanes.position(np.arange(lanes.count), np.arange(MIXTURE_BLOCK)[:, None])
    samples = order.sample(own.ravel()).reshape(own.shape)
    expected = quotas([fraction, 1 - fraction])[0]
    assert (labeled[samples].sum(0) == expected).all()
    counts = np.bincount(samples.ravel(), minlength=173)
    for group in (counts[labeled], counts[~labeled]):
        assert group.max() - group.min() <= 1


@pytest.mark.parametrize("kind", ["mixture", "oversampled"])
def test_a_mixture_and_oversampling_leave_each_lane_its_part_of_the_shards(kind: str) -> None:
    lanes, size, shards = Lanes(8, 4), 50, 160
    n, chosen = size * shards, policy(lanes, 100, 3)
    sizes = np.full(shards, size)
    labeled = np.arange(n) % 5 == 0
    order = chosen.mixed([sizes, sizes], [0.5, 0.5]) if kind == "mixture" else chosen.oversampled(sizes, labeled, 0.2)
    total = 2 * n if kind == "mixture" else n
    some = positions(0, total)
    shard = order.sample(some) // size
    if kind == "oversampled":
        part = labeled[order.sample(some)]
        shard = shard + shards * part  # each group has its own epochs
    own = [len(np.unique(shard[lanes.lane(some) == lane])) for lane in range(8)]
    # a lane begins up to two epochs of each part, and a shard at a cut belongs to two lanes
    assert max(own) <= 2 * shards / 8 + 8


@pytest.mark.parametrize(("fraction", "window"), [(1.0, 100), (0.5, 50), (0.01, 20)])
def test_the_windows_of_a_mixture_are_together_as_large_as_one(fraction: float, window: int) -> None:
    part = policy(Lanes(4, 8), 100, 0)._part(fraction, np.full(10, 20))
    assert (part.window, part.lanes) == (window, Lanes(4, 1))  # a shard of 20 samples is fetched whole
