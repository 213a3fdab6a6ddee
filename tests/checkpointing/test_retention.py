"""Which checkpoints are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.checkpointing.retention import BestCriterion, Retention


def kept(retention: Retention, metrics: dict[int, dict[str, float]]) -> list[int]:
    return [images for images, reasons in retention.reasons(metrics).items() if reasons]


def without_metrics(*images: int) -> dict[int, dict[str, float]]:
    return {n: {} for n in images}


def test_the_newest_are_kept() -> None:
    assert kept(Retention(2), without_metrics(10, 20, 30, 40)) == [30, 40]


def test_the_first_at_or_after_each_multiple_is_kept() -> None:
    assert kept(Retention(1, every=100), without_metrics(60, 120, 180, 240, 300, 360)) == [120, 240, 300, 360]


@pytest.mark.parametrize(("largest", "best"), [(True, 20), (False, 10)])
def test_the_best_is_kept_the_earliest_in_a_tie(largest: bool, best: int) -> None:
    metrics = {10: {"x": 0.1}, 20: {"x": 0.9}, 30: {"x": 0.9}, 40: {"y": 5.0}, 50: {}}
    assert kept(Retention(1, best=BestCriterion("x", largest)), metrics) == [best, 50]


def test_without_the_metric_none_is_the_best() -> None:
    assert kept(Retention(1, best=BestCriterion("x")), without_metrics(10, 20)) == [20]


@given(
    images=st.lists(st.integers(1, 1000), min_size=1, max_size=30, unique=True).map(sorted),
    last=st.integers(1, 4),
    every=st.none() | st.integers(1, 300),
    values=st.lists(st.none() | st.floats(0, 1), min_size=30, max_size=30),
)
def test_removing_step_by_step_equals_removing_at_the_end(
    images: list[int], last: int, every: int | None, values: list[float | None]
) -> None:
    measured = {n: {} if value is None else {"x": value} for n, value in zip(images, values, strict=False)}
    retention = Retention(last, every, BestCriterion("x"))
    present: dict[int, dict[str, float]] = {}
    for n in images:
        present[n] = measured[n]
        present = {m: present[m] for m in kept(retention, present)}
    assert list(present) == kept(retention, measured)
