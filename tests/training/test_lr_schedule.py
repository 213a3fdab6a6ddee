"""The learning rate as a function of images seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.config import TrainConfig
from mtgen.training.lr_schedule import lr_factor

trains = st.builds(TrainConfig, images=st.integers(1, 10**7), warmup=st.just(0), final_rate=st.floats(1e-3, 1))


def test_it_rises_linearly_over_the_warmup() -> None:
    train = TrainConfig(images=10**9, warmup=1000)
    assert [lr_factor(train, images) for images in (0, 250, 500, 1000)] == pytest.approx([0, 0.25, 0.5, 1], abs=1e-6)


@given(trains)
def test_it_starts_at_the_peak_and_ends_at_the_final_rate(train: TrainConfig) -> None:
    assert lr_factor(train, 0) == pytest.approx(1)
    assert lr_factor(train, train.images) == pytest.approx(train.final_rate)
    assert lr_factor(train, 10 * train.images) == pytest.approx(train.final_rate)


def test_half_way_it_is_half_way_between_peak_and_end() -> None:
    assert lr_factor(TrainConfig(images=1000, warmup=0, final_rate=0.2), 500) == pytest.approx(0.6)


@given(trains, st.integers(0, 10**7), st.integers(0, 10**7))
def test_after_the_warmup_it_never_rises(train: TrainConfig, a: int, b: int) -> None:
    assert lr_factor(train, max(a, b)) <= lr_factor(train, min(a, b)) + 1e-12


@given(
    st.builds(TrainConfig, images=st.integers(1, 10**6), warmup=st.integers(0, 10**6), final_rate=st.floats(1e-3, 1)),
    st.integers(1, 10**7),
)
def test_it_is_positive_and_never_above_the_peak(train: TrainConfig, images: int) -> None:
    assert 0 < lr_factor(train, images) <= 1
