"""Conversion of boxes to center maps and back, as in CenterNet."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtgen.networks.center_maps import MAX_BOXES, MIN_CENTER_HEAT, decode, decode_canvas, encode

CLASSES, GRID = 3, (8, 12)
NONE = [0.0, 0.0, 0.0, 0.0, -1.0]
Box = tuple[float, float, float, float, int]


@st.composite
def apart(draw: st.DrawFn) -> list[Box]:
    """Boxes far apart: each in its own square of 4x4 cells, with its center one cell away from the square's edge."""
    found = []
    for number in draw(st.lists(st.integers(0, 5), unique=True, max_size=6)):
        wide, high = draw(st.floats(0.5, 3)), draw(st.floats(0.5, 3))
        x, y = 4 * (number % 3) + draw(st.floats(1.05, 2.95)), 4 * (number // 3) + draw(st.floats(1.05, 2.95))
        x0, y0, x1, y1 = (x - wide / 2) / 12, (y - high / 2) / 8, (x + wide / 2) / 12, (y + high / 2) / 8
        found.append((x0, y0, x1, y1, draw(st.integers(0, CLASSES - 1))))
    return found


def as_tensor(boxes: list[Box], rows: int = 7) -> Tensor:
    return torch.tensor([[*boxes, *[NONE] * (rows - len(boxes))]], dtype=torch.float32)


def listed(found: Tensor) -> list[tuple[list[float], int]]:
    """The boxes of the first image with a score above 0, ordered by their corners."""
    return sorted((row[:4].tolist(), int(row[4])) for row in found[0] if row[5] > 0)


def compare(found: list[tuple[list[float], int]], boxes: list[Box], tolerance: float) -> None:
    expected = sorted(([min(max(x, 0.0), 1.0) for x in box[:4]], box[4]) for box in boxes)
    assert len(found) == len(expected)
    for corners, kind in expected:
        near = min(found, key=lambda one: sum(abs(a - b) for a, b in zip(one[0], corners, strict=True)))
        assert near[1] == kind
        assert near[0] == pytest.approx(corners, abs=tolerance)


@given(apart())
def test_boxes_far_apart_are_decoded_with_their_class(boxes: list[Box]) -> None:
    maps = encode(as_tensor(boxes), CLASSES, GRID)
    compare(listed(decode(maps.heat, maps.size, maps.offset)), boxes, 1e-5)


@given(apart())
def test_boxes_are_decoded_from_a_canvas_up_to_half_a_cell(boxes: list[Box]) -> None:
    found = listed(decode_canvas(encode(as_tensor(boxes), CLASSES, GRID).canvas()))
    compare(found, boxes, 0.5 / min(GRID) + 1e-5)


@pytest.mark.parametrize(
    "box",
    [(0.0, 0.0, 0.02, 0.02), (0.98, 0.98, 1.0, 1.0), (0.0, 0.9, 1.0, 1.0), (1.0, 0.2, 1.0, 0.4), (0.0, 0.0, 1.0, 1.0)],
)
def test_boxes_at_the_border_have_their_center_in_the_outermost_cell(box: tuple[float, float, float, float]) -> None:
    maps = encode(as_tensor([(*box, 1)]), CLASSES, GRID)
    assert int(maps.here.sum()) == 1
    compare(listed(decode(maps.heat, maps.size, maps.offset)), [(*box, 1)], 1e-5)


def test_of_two_boxes_in_a_cell_the_later_ones_size_counts() -> None:
    first, second = (0.50, 0.50, 0.54, 0.54, 0), (0.40, 0.40, 0.64, 0.64, 0)
    maps = encode(as_tensor([first, second]), CLASSES, GRID)
    assert int(maps.here.sum()) == 1
    compare(listed(decode(maps.heat, maps.size, maps.offset)), [second], 1e-5)


def test_two_classes_in_a_cell_are_two_boxes_of_one_size() -> None:
    first, second = (0.50, 0.50, 0.54, 0.54, 0), (0.40, 0.40, 0.64, 0.64, 2)
    maps = encode(as_tensor([first, second]), CLASSES, GRID)
    found = listed(decode(maps.heat, maps.size, maps.offset))
    assert sorted(kind for _, kind in found) == [0, 2]
    assert found[0][0] == found[1][0]


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_no_boxes_are_empty_maps_and_are_decoded_as_none(rows: int) -> None:
    maps = encode(torch.tensor([[NONE] * rows]).reshape(1, rows, 5), CLASSES, GRID)
    assert maps.heat.shape == (1, CLASSES, *GRID)
    assert not any(bool(x.any()) for x in (maps.heat, maps.size, maps.offset, maps.here, maps.around))
    found = decode(maps.heat, maps.size, maps.offset)
    assert found.shape == (1, MAX_BOXES, 6)
    assert not found[..., 5].any()


def test_an_empty_batch_gives_empty_maps() -> None:
    assert encode(torch.zeros(0, 4, 5), CLASSES, GRID).canvas().shape == (0, CLASSES + 2, *GRID)


@given(apart(), apart())
def test_images_of_a_batch_do_not_mix(one: list[Box], other: list[Box]) -> None:
    both = encode(torch.cat([as_tensor(one), as_tensor(other)]), CLASSES, GRID)
    for row, boxes in enumerate((one, other)):
        alone = encode(as_tensor(boxes), CLASSES, GRID)
        assert all(
            torch.equal(getattr(both, name)[row], getattr(alone, name)[0])
            for name in ("heat", "size", "offset", "here", "around")
        )


@given(st.floats(0.5, 40), st.floats(0.5, 40))
def test_the_width_of_a_peak_is_the_shift_that_keeps_an_iou_of_07(wide: float, high: float) -> None:
    """Shifted in x and y by three standard deviations a box keeps an IoU of 0.7; a deviation is at least 0.8 cells."""
    box = (0.5 - wide / 24, 0.5 - high / 16, 0.5 + wide / 24, 0.5 + high / 16, 0)
    heat = encode(as_tensor([box]), CLASSES, GRID).heat[0, 0]
    row, column = divmod(int(heat.argmax()), GRID[1])
    assert heat[row, column] == 1
    reach = 3 * math.sqrt(-1 / (2 * math.log(float(heat[row, column + 1]))))
    inside = (wide - reach) * (high - reach)
    assert reach == pytest.approx(3 * 0.8, rel=1e-3) or inside / (2 * wide * high - inside) == pytest.approx(
        0.7, abs=1e-3
    )
    assert float(heat[row + 1, column]) == pytest.approx(float(heat[row, column + 1]))


def test_boxes_are_sorted_by_score_and_faint_cells_and_those_next_to_hotter_ones_are_none() -> None:
    heat = torch.zeros(1, CLASSES, *GRID)
    heat[0, 0, 1, 1] = 0.9
    heat[0, 0, 1, 2] = 0.8  # next to a hotter cell
    heat[0, 1, 5, 5] = 0.95
    heat[0, 2, 7, 11] = 0.3
    heat[0, 2, 3, 9] = MIN_CENTER_HEAT / 2
    found = decode(heat, torch.full((1, 2, *GRID), 0.1), torch.full((1, 2, *GRID), 0.5), most=5)
    assert found[0, :, 5].tolist() == pytest.approx([0.95, 0.9, 0.3, 0, 0])
    assert found[0, :3, 4].tolist() == [1, 0, 2]
    assert (found[0, 0, [0, 2]].mean().item(), found[0, 0, [1, 3]].mean().item()) == pytest.approx((5.5 / 12, 5.5 / 8))
