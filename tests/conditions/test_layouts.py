"""Masks and boxes as layouts: one map per class, pixel by pixel."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mtgen.conditions.layout import boxes_layout, mask_layout

sides = st.integers(1, 9)
fractions = st.floats(-0.25, 1.25, allow_nan=False, width=32)
boxes = st.lists(st.tuples(fractions, fractions, fractions, fractions, st.integers(-1, 2)), max_size=5)


@given(sides, sides, boxes)
def test_a_box_covers_the_pixels_whose_centers_are_inside(
    height: int, width: int, found: list[tuple[float, ...]]
) -> None:
    laid = boxes_layout(torch.tensor(found, dtype=torch.float64).reshape(1, len(found), 5), 3, height, width)
    assert laid.shape == (1, 3, height, width)
    for kind in range(3):
        for row in range(height):
            for column in range(width):
                x, y = (column + 0.5) / width, (row + 0.5) / height
                near = [abs(edge - at) < 1e-6 for b in found for edge, at in zip(b[:4], (x, y, x, y), strict=True)]
                inside = any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1, k in found if k == kind)
                assert any(near) or laid[0, kind, row, column] == inside


@given(st.lists(st.integers(0, 3) | st.just(255), min_size=6, max_size=6))
def test_a_mask_layout_is_one_hot_and_0_for_unknown_pixels(pixels: list[int]) -> None:
    laid = mask_layout(torch.tensor(pixels).reshape(1, 2, 3), 4)
    expected = [[float(pixel == kind) for pixel in pixels] for kind in range(4)]
    assert laid[0].flatten(1).tolist() == expected


def test_rows_do_not_mix() -> None:
    one = torch.tensor([[[0.0, 0.0, 0.5, 0.5, 1.0]], [[0.5, 0.5, 1.0, 1.0, 2.0]]])
    laid = boxes_layout(one, 3, 4, 4)
    assert laid.sum((2, 3)).tolist() == [[0, 4, 0], [0, 0, 4]]
