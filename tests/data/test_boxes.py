"""Boxes are transformed like their image, and invalid ones are named."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data.boxes import MIN_VISIBLE_FRACTION, annotation, crop_boxes
from mtgen.data.geometry import Window


def window_at(x: int, y: int, w: int, h: int, mirror: bool = False) -> Window:
    return Window(np.array([[x, y]], np.int32), np.array([[w, h]], np.int32), np.array([mirror]))


def read(values: Any) -> Any:
    return annotation(json.dumps(values).encode(), 40, 30, np.arange(3))


@given(data=st.data())
def test_a_cropped_box_bounds_the_visible_part(data: st.DataObject) -> None:
    x0, y0 = data.draw(st.integers(0, 39)), data.draw(st.integers(0, 29))
    x1, y1 = data.draw(st.integers(x0 + 1, 40)), data.draw(st.integers(y0 + 1, 30))
    x, y = data.draw(st.integers(0, 39)), data.draw(st.integers(0, 29))
    w, h = data.draw(st.integers(1, 40 - x)), data.draw(st.integers(1, 30 - y))
    mirror = data.draw(st.booleans())
    drawn = np.zeros((30, 40), bool)
    drawn[y0:y1, x0:x1] = True
    seen = drawn[y : y + h, x : x + w]
    seen = seen[:, ::-1] if mirror else seen
    out = crop_boxes([np.array([[x0, y0, x1, y1, 2]], float)], window_at(x, y, w, h, mirror), 2)[0]
    if not seen.any() or seen.sum() < MIN_VISIBLE_FRACTION * drawn.sum():
        assert (out[:, 4] == -1).all() and (out[:, :4] == 0).all()
        return
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    expected = [columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h, 2]
    assert np.allclose(out[0], expected, atol=1e-6) and out[1].tolist() == [0, 0, 0, 0, -1]


def test_if_there_are_too_many_boxes_the_largest_are_kept_in_order() -> None:
    boxes = np.array([[0, 0, 4, 4, 0], [0, 0, 1, 1, 1], [0, 0, 9, 9, 2]], float)
    assert crop_boxes([boxes], window_at(0, 0, 10, 10), 2)[0, :, 4].tolist() == [0, 2]


def test_class_numbers_are_mapped_by_the_table_of_the_data_set() -> None:
    found = annotation(b'{"boxes": [[0, 0, 1, 1, 1]], "labels": [1, 0]}', 4, 4, np.array([7, 5]))
    assert found.boxes[0, 4] == 5 and found.labels == [5, 7]


def test_labels_default_to_the_classes_of_the_boxes() -> None:
    assert read({"boxes": []}).boxes.shape == (0, 5)
    assert read({"boxes": [[0, 0, 1, 1, 2], [1, 1, 2, 2, 0], [2, 2, 3, 3, 2]]}).labels == [0, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"boxes": [', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[[0, 0, 1, 1, 0]]", "a list; the JSON has to be an object"),
        (b'{"boxes": 3}', "have to be lists"),
        (b'{"boxes": [[0, 0, 1, 0]]}', r"box 0 \[0, 0, 1, 0\]: a box is"),
        (b'{"boxes": [[0, 0, 1, true, 0]]}', "a box is"),
        (b'{"boxes": [[0, 0, 1, 1, 0], [5, 0, 2, 9, 0]]}', "box 1 .* empty or reversed"),
        (b'{"boxes": [[0, 0, 0, 9, 0]]}', "empty or reversed"),
        (b'{"boxes": [[0, 0, NaN, 9, 0]]}', "not finite"),
        (b'{"boxes": [[0, 0, Infinity, 9, 0]]}', "not finite"),
        (b'{"boxes": [[0, 0, 41, 9, 0]]}', "outside its image of 40x30"),
        (b'{"boxes": [[0, 0, 1' + b"0" * 400 + b", 9, 0]]}", "outside its image"),
        (b'{"boxes": [[-1, 0, 4, 9, 0]]}', "outside its image"),
        (b'{"boxes": [[0, 0, 4, 9, 3]]}', "class 3; possible: 0 to 2"),
        (b'{"boxes": [[0, 0, 4, 9, 0.5]]}', "class 0.5"),
        (b'{"labels": [1, -1]}', "label -1"),
        (b'{"width": 41, "boxes": []}', "width 41, its image has 40"),
        (b'{"labels": null}', "have to be lists"),
    ],
)
def test_invalid_annotations_are_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        annotation(data, 40, 30, np.arange(3))
    assert "\n" not in str(raised.value)
