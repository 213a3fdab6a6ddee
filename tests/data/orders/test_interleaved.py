"""Mixtures and oversampled labels: exact proportions, and exact epochs of every part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data.orders.interleaved import MIXTURE_BLOCK, InterleavedOrder, LabelOversamplingOrder, quotas
from mtgen.data.orders.permutation import Order

SEEDS = st.integers(0, 2**31 - 1)
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
