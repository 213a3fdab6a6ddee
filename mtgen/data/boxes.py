"""Boxes and labels of a sample: its JSON, judged and brought into the window that its image is cut to."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtgen.data.geometry import Window

MIN_VISIBLE_FRACTION = 0.25
"""A box of which a smaller share lies in the window is left out: what is left of its thing tells too little."""

NO_BOX = -1
"""Class of a row that holds no box."""


@dataclass(frozen=True)
class Annotation:
    """What a sample's JSON says.

    Attributes:
        boxes: `[n,5]` float64, x0, y0, x1, y1 in pixels of the image as displayed and the class in the card.
        labels: numbers in the card of all classes that are in the image; where the JSON does not say, those of its boxes.
    """

    boxes: NDArray[np.float64]
    labels: list[int]


def annotation(data: bytes, width: int, height: int, classes: NDArray[np.int64]) -> Annotation:
    """Read a sample's JSON.

    Args:
        width, height: of the image as displayed, pixels.
        classes: `[K]`: a class number as stored -> its number in the card.

    Raises:
        ValueError: it is not JSON, or a box or a label in it is impossible; the message is one line.
    """
    values = _parsed(data)
    for fault in _faults(values, width, height, len(classes)):
        raise ValueError(fault)
    boxes, labels = values.get("boxes", []), values.get("labels")
    found = np.array(boxes, dtype=np.float64).reshape(-1, 5)
    found[:, 4] = classes[found[:, 4].astype(np.int64)]
    return Annotation(
        found,
        sorted({int(kind) for kind in found[:, 4]}) if labels is None else [int(classes[label]) for label in labels],
    )


def annotation_problems(data: bytes, width: int, height: int, classes: int) -> list[str]:
    """Everything that is wrong with a sample's JSON, a line each.

    Args:
        width, height: of the image as displayed, pixels; 0 where that is not known.
        classes: how many there are.
    """
    try:
        values = _parsed(data)
    except ValueError as error:
        return [str(error)]
    return list(_faults(values, width, height, classes))


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not readable ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__}; it has to be an object with boxes, width and height")
    return values


def _faults(values: dict[str, Any], width: int, height: int, classes: int) -> Iterator[str]:
    """What is wrong with a JSON object; the one list of rules, for training and for `mtgen shards validate`."""
    for side, size in (("width", width), ("height", height)):
        if size > 0 and side in values and values[side] != size:
            yield f"{side} {_short(values[side])}, its image has {size}"
    boxes, labels = values.get("boxes", []), values.get("labels", [])
    if not isinstance(boxes, list) or not isinstance(labels, list):
        yield "boxes and labels have to be lists"
        return
    for number, box in enumerate(boxes):
        for fault in _box_faults(box, width, height, classes):
            yield f"box {number} {_short(box)}: {fault}"
    for label in labels:
        if not _is_class(label, classes):
            yield f"label {_short(label)}, {_named(classes)}"


def _box_faults(box: Any, width: int, height: int, classes: int) -> Iterator[str]:
    """What is wrong with `[x0, y0, x1, y1, class]`, pixels of the image as displayed."""
    if (
        not isinstance(box, list)
        or len(box) != 5
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
    ):
        yield "a box is [x0, y0, x1, y1, class], five numbers"
        return
    if not all(-math.inf < v < math.inf for v in box):  # not isfinite: it fails on integers that are no float
        yield "not finite"
        return
    x0, y0, x1, y1, kind = box
    if x0 >= x1 or y0 >= y1:
        yield "empty or reversed; x0 < x1 and y0 < y1"
    elif width > 0 and not (0 <= x0 and 0 <= y0 and x1 <= width and y1 <= height):
        yield f"outside its image of {width}x{height}"
    if not _is_class(kind, classes):
        yield f"class {_short(kind)}, {_named(classes)}"


def _short(value: Any) -> str:
    return json.dumps(value)[:80]


def _named(classes: int) -> str:
    return f"there are classes 0 to {classes - 1}" if classes else "and there are no classes"


def _is_class(value: Any, classes: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < classes


def crop_boxes(
    boxes: list[NDArray[np.float64]], view: Window, most: int, visible: float = MIN_VISIBLE_FRACTION
) -> NDArray[np.float32]:
    """Boxes in pixels of the images as displayed -> `[B,most,5]` in shares of what comes out, 0 to 1; clipped, padded with class -1.

    A box with less than `visible` of its area in the window is left out; of more than `most`, the largest are kept, in their order.
    """
    out = np.zeros((len(boxes), most, 5), np.float32)
    out[:, :, 4] = NO_BOX
    for row, stored in enumerate(boxes):
        if not len(stored):
            continue
        start, size = view.start[row], view.size[row]
        corners = np.clip((stored[:, :4].reshape(-1, 2, 2) - start) / size, 0, 1)
        if view.mirror[row]:
            corners[:, :, 0] = 1 - corners[:, ::-1, 0]
        area = (corners[:, 1] - corners[:, 0]).prod(1)
        whole = ((stored[:, 2:4] - stored[:, :2]) / size).prod(1)
        kept = np.flatnonzero((area > 0) & (area >= visible * whole * (1 - 1e-9)))
        kept = np.sort(kept[np.argsort(-area[kept], kind="stable")[:most]])
        out[row, : len(kept), :4] = corners[kept].reshape(-1, 4)
        out[row, : len(kept), 4] = stored[kept, 4]
    return out
