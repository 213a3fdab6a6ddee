"""Windows are inside their images, and are functions of seed and position."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data.geometry import ASPECT_RANGE, window

SIDES = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=20)


@given(
    sides=SIDES,
    crop=st.floats(0.01, 1),
    flip=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
    begin=st.integers(0, 2**40),
)
def test_a_window_is_inside_its_image(
    sides: list[tuple[int, int]], crop: float, flip: bool, seed: int, begin: int
) -> None:
    size = np.array(sides)
    region = window(size[:, 0], size[:, 1], crop, flip, seed, begin + np.arange(len(size)))
    assert (region.start >= 0).all() and (region.size >= 1).all() and (region.start + region.size <= size).all()


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_without_random_crops_it_is_the_largest_centered_square(width: int, height: int) -> None:
    region = window(np.array([width]), np.array([height]), 1.0, False, 0, np.array([0]))
    left, top = region.start[0]
    side = min(width, height)
    assert region.size.tolist() == [[side, side]]
    assert 0 <= (width - side - left) - left <= 1 and 0 <= (height - side - top) - top <= 1


@given(seed=st.integers(0, 2**31 - 1), position=st.lists(st.integers(0, 2**40), min_size=2, max_size=20))
def test_a_window_does_not_depend_on_the_batch(seed: int, position: list[int]) -> None:
    side = np.full(len(position), 100)
    together = window(side, side, 0.3, True, seed, np.array(position))
    for row, p in enumerate(position):
        alone = window(side[:1], side[:1], 0.3, True, seed, np.array([p]))
        assert np.array_equal(alone.start[0], together.start[row]) and np.array_equal(alone.size[0], together.size[row])
        assert alone.mirror[0] == together.mirror[row]


def test_random_crops_respect_area_and_aspect() -> None:
    side = np.full(2000, 1000)
    region = window(side, side, 0.25, False, 0, np.arange(2000))
    inside = (region.size < 1000).all(1)  # larger ones are clipped to the image
    area, aspect = region.size.prod(1) / 1e6, region.size[:, 0] / region.size[:, 1]
    assert area.max() <= 1 and area[inside].min() > 0.249 and area[inside].min() < 0.27
    assert aspect[inside].min() > ASPECT_RANGE[0] - 0.01 and aspect[inside].max() < ASPECT_RANGE[1] + 0.01
    assert np.unique(region.start, axis=0).shape[0] > 1500


def test_flip_mirrors_half_of_the_samples() -> None:
    side = np.full(4000, 10)
    assert abs(window(side, side, 1.0, True, 0, np.arange(4000)).mirror.mean() - 0.5) < 0.03
    assert not window(side, side, 1.0, False, 0, np.arange(4000)).mirror.any()


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), aspect=st.floats(0.2, 5))
def test_the_largest_centered_rectangle_touches_two_edges_and_has_the_given_aspect(
    width: int, height: int, aspect: float
) -> None:
    region = window(np.array([width]), np.array([height]), 1.0, False, 0, np.array([0]), aspect)
    (left, top), (w, h) = region.start[0], region.size[0]
    assert w == width or h == height
    assert abs(w - h * aspect) <= 0.5 + aspect / 2 or 1 in (w, h)
    assert 0 <= (width - w - left) - left <= 1 and 0 <= (height - h - top) - top <= 1
