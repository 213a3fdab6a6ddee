"""Rasterized regions: polygons by pixel centers, run lengths by COCO's format."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.shards.coco_masks import polygon, run_lengths, runs

COORDINATE = st.floats(-30, 30, allow_nan=False).map(
    lambda v: round(v, 2) + 0.003
)  # never on a line through pixel centers


def encoded(lengths: list[int]) -> str:
    """Encode run lengths with divisions, as the format describes it."""
    text = ""
    for i, length in enumerate(lengths):
        value, more = length - (lengths[i - 2] if i > 2 else 0), True
        while more:
            value, low = divmod(value, 32)
            more = not (value == 0 and low < 16) and not (value == -1 and low >= 16)
            text += chr(48 + low + 32 * more)
    return text


def crossings(y: float, points: list[tuple[float, float]]) -> list[float]:
    """Where the edges cross the row at height `y`."""
    edges = zip(points, points[1:] + points[:1], strict=True)
    return [x0 + (x1 - x0) * (y - y0) / (y1 - y0) for (x0, y0), (x1, y1) in edges if (y0 > y) != (y1 > y)]


@given(st.lists(st.tuples(COORDINATE, COORDINATE), max_size=8), st.integers(1, 20), st.integers(1, 20))
def test_a_polygon_has_the_pixels_whose_centers_are_inside(
    points: list[tuple[float, float]], height: int, width: int
) -> None:
    found = polygon([v for point in points for v in point], height, width)
    for row, column in np.ndindex(height, width):
        across = crossings(row + 0.5, points)
        if all(abs(x - column - 0.5) > 1e-6 for x in across):  # if an edge meets the center, rounding decides
            assert found[row, column] == sum(x > column + 0.5 for x in across) % 2


def test_a_rectangle_on_the_pixel_grid_has_exactly_its_pixels() -> None:
    assert np.argwhere(polygon([1, 2, 4, 2, 4, 3, 1, 3], 5, 6)).tolist() == [[2, 1], [2, 2], [2, 3]]


@given(st.lists(st.integers(0, 2**33), max_size=20))
def test_compressed_run_lengths_are_decoded_as_encoded(lengths: list[int]) -> None:
    assert run_lengths(encoded(lengths)) == lengths


def test_a_string_of_pycocotools_is_decoded() -> None:
    """From pycocotools 2.0.11's `encode`."""
    expected = [[0, 0, 0, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert runs(run_lengths("5220O11O3"), 4, 6).astype(int).tolist() == expected


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_runs_are_in_column_order_and_start_outside(height: int, width: int, data: st.DataObject) -> None:
    mask = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    lengths, inside = [0], False
    for value in mask:
        if value != inside:
            lengths.append(0)
            inside = value
        lengths[-1] += 1
    assert runs(lengths, height, width).T.ravel().tolist() == mask


@pytest.mark.parametrize("text", ["5220O11o", "5220 ", "o" * 20, "5é"])
def test_a_damaged_string_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="compressed run length"):
        run_lengths(text)


@pytest.mark.parametrize("lengths", [[], [3, 4], [3, 99], [-1, 9], [10**30]])
def test_runs_that_do_not_add_up_to_the_image_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="add up to 4x2 pixels"):
        runs(lengths, 2, 4)


def test_a_polygon_with_half_a_point_is_refused() -> None:
    with pytest.raises(ValueError, match="pairs"):
        polygon([1, 2, 3], 4, 4)
