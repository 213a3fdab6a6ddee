"""The uniform subsample of a stream."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mtgen.evaluation.collectors.uniform_subsample import UniformSubsample


@given(st.integers(0, 10_000), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 40))
def test_the_subsample_does_not_depend_on_order_and_parts(seed: int, sizes: list[int], most: int) -> None:
    n, g = sum(sizes), torch.Generator().manual_seed(seed)
    row = torch.randn(n, 2, generator=g)
    whole, parts = UniformSubsample(most), UniformSubsample(most)
    whole.update(row, position=torch.arange(n))
    for position in torch.randperm(n, generator=g).split(sizes):
        parts.update(row[position], position=position)
    assert [part.tolist() for part in parts.rows()] == [part.tolist() for part in whole.rows()]
    assert parts.count == n and len(parts) == len(parts.rows()[0]) == min(n, most)


def test_rows_stay_together_and_in_the_order_of_their_positions() -> None:
    choice, number = UniformSubsample(50), torch.arange(1000)
    for part in number.split(70):
        choice.update(part * 2, part[:, None] * 3)
    position, double, triple = choice.rows()
    assert torch.equal(position, position.sort().values) and len(position) == 50
    assert torch.equal(double, position * 2) and torch.equal(triple[:, 0], position * 3)


def test_every_part_of_a_stream_is_equally_represented() -> None:
    choice = UniformSubsample(2_000)
    choice.update(torch.zeros(20_000))
    counts = torch.bincount(choice.rows()[0] // 5_000)
    assert (counts - 500).abs().max() < 80  # four standard deviations of a uniform subsample


def test_it_holds_at_most_twice_its_size() -> None:
    choice = UniformSubsample(100)
    for _ in range(300):
        choice.update(torch.zeros(50, 3))
        assert sum(len(part[0]) for part in choice._parts) < 200


def test_a_stream_without_rows_has_no_rows() -> None:
    assert UniformSubsample(5).rows() == () and len(UniformSubsample(5)) == 0
