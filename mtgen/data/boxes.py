"""Boxes and labels of a sample: its JSON is checked, and the boxes are moved into the crop window of the image."""

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtgen.data.geometry import Window

MIN_VISIBLE_FRACTION = 0.25
"""A box is dropped if a smaller fraction of its area is in the window: too little of its object is visible."""

ANNOTATION_EXAMPLE = '{"boxes": [[x0, y0, x1, y1, class]], "labels": [class]}'
"""The form of a sample's JSON, for messages."""

NO_BOX = -1
"""Class of a padding row, which has no box."""


@dataclass(frozen=True)
class Annotation:
    """The content of a sample's JSON.

    Attributes:
        boxes: `[n,5]` float64: x0, y0, x1, y1 in pixels of the image as displayed, and the class number of the card.
        labels: class numbers of the card of everything in the image; those of the boxes if the JSON has no `labels`.
    """

    boxes: NDArray[np.float64]
    labels: list[int]

    def only(self, components: Collection[str]) -> "Annotation":
        """Without the boxes, or without the labels, where "boxes" or "tags" is not among the components."""
        boxes = self.boxes if "boxes" in components else self.boxes[:0]
        return Annotation(boxes, self.labels if "tags" in components else [])


def annotation(data: bytes, width: int, height: int, classes: NDArray[np.int64]) -> Annotation:
    """Parse a sample's JSON.

    Args:
        width, height: size of the image as displayed, pixels.
        classes: `[K]`: class number as stored -> class number of the card.

    Raises:
        ValueError: it is not JSON, or has an invalid box or label; the message is one line.
    """
    values = _parse(data)
    for problem in _problems(values, width, height, len(classes)):
        raise ValueError(problem)
    labels = values.get("labels")
    boxes = np.array(values.get("boxes", []), dtype=np.float64).reshape(-1, 5)
    boxes[:, 4] = classes[boxes[:, 4].astype(np.int64)]
    if labels is None:
        return Annotation(boxes, sorted({int(number) for number in boxes[:, 4]}))
    return Annotation(boxes, [int(classes[label]) for label in labels])


def annotation_problems(data: bytes, width: int, height: int, classes: int) -> list[str]:
    """Everything that is wrong with a sample's JSON, one line per problem.

    Args:
        width, height: size of the image as displayed, pixels; 0 if it is not known.
        classes: number of classes.
    """
    try:
        values = _parse(data)
    except ValueError as error:
        return [str(error)]
    return list(_problems(values, width, height, classes))


def _parse(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__}; the JSON has to be an object such as {ANNOTATION_EXAMPLE}")
    return values


def _problems(values: dict[str, Any], width: int, height: int, classes: int) -> Iterator[str]:
    """What is wrong with a JSON object: the single list of rules, for training and for `mtgen shards validate`."""
    for name, size in (("width", width), ("height", height)):
        if size > 0 and name in values and values[name] != size:
            yield f"{name} {_short(values[name])}, its image has {size}"
    boxes, labels = values.get("boxes", []), values.get("labels", [])
    if not isinstance(boxes, list) or not isinstance(labels, list):
        yield f"boxes and labels have to be lists, as in {ANNOTATION_EXAMPLE}"
        return
    for number, box in enumerate(boxes):
        for problem in _box_problems(box, width, height, classes):
            yield f"box {number} {_short(box)}: {problem}"
    for label in labels:
        if not _is_class(label, classes):
            yield f"label {_short(label)}{_class_range(classes)}"


def _box_problems(box: Any, width: int, height: int, classes: int) -> Iterator[str]:
    """What is wrong with a box `[x0, y0, x1, y1, class]`, in pixels of the image as displayed."""
    if (
        not isinstance(box, list)
        or len(box) != 5
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
    ):
        yield "a box is [x0, y0, x1, y1, class], five numbers"
        return
    if not all(-math.inf < v < math.inf for v in box):  # isfinite fails on integers that are too large for a float
        yield "not finite"
        return
    x0, y0, x1, y1, label = box
    if x0 >= x1 or y0 >= y1:
        yield "empty or reversed; it needs x0 < x1 and y0 < y1"
    elif width > 0 and not (0 <= x0 and 0 <= y0 and x1 <= width and y1 <= height):
        yield f"outside its image of {width}x{height}"
    if not _is_class(label, classes):
        yield f"class {_short(label)}{_class_range(classes)}"


def _short(value: Any) -> str:
    return json.dumps(value)[:80]


def _class_range(classes: int) -> str:
    return f"; possible: 0 to {classes - 1}" if classes else ", but there are no classes"


def _is_class(value: Any, classes: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < classes


def crop_boxes(
    boxes: list[NDArray[np.float64]], window: Window, limit: int, min_visible: float = MIN_VISIBLE_FRACTION
) -> NDArray[np.float32]:
    """Boxes in pixels of the images as displayed -> boxes in the window, `[B,limit,5]`.

    Coordinates are fractions of the window's width and height, clipped to [0, 1]. Rows without a box have class -1.
    A box with less than `min_visible` of its area in the window is dropped. If more than `limit` are left, the largest
    are kept, in their order.
    """
    out = np.zeros((len(boxes), limit, 5), np.float32)
    out[:, :, 4] = NO_BOX
    for row, stored in enumerate(boxes):
        if not len(stored):
            continue
        start, size = window.start[row], window.size[row]
        corners = np.clip((stored[:, :4].reshape(-1, 2, 2) - start) / size, 0, 1)
        if window.mirror[row]:
            corners[:, :, 0] = 1 - corners[:, ::-1, 0]
        area = (corners[:, 1] - corners[:, 0]).prod(1)
        whole = ((stored[:, 2:4] - stored[:, :2]) / size).prod(1)
        kept = np.flatnonzero((area > 0) & (area >= min_visible * whole * (1 - 1e-9)))
        kept = np.sort(kept[np.argsort(-area[kept], kind="stable")[:limit]])
        out[row, : len(kept), :4] = corners[kept].reshape(-1, 4)
        out[row, : len(kept), 4] = stored[kept, 4]
    return out
