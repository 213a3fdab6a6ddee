"""Files that say what should be where, read as a run was trained on them: masks and boxes."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtgen.conditions.layout import boxes_layout, mask_layout
from mtgen.data.boxes import annotation, crop_boxes
from mtgen.data.geometry import Window, window
from mtgen.errors import DataError
from mtgen.inference.label_names import parse_class
from mtgen.schema import IGNORE_INDEX, DatasetCard
from mtgen.shards.input_files import FileLike, read_json, read_mask

MODALITY_BY_SUFFIX = {".png": "layout", ".json": "boxes"}
"""What a file ends with -> the modality that it is asked for by."""

MAX_SIDE_PIXELS = 1_000_000
"""Pixels that a side of a layout may have."""


def center_window(width: int, height: int, size: tuple[int, int]) -> Window:
    """What training sees of an image of that size without random crops: its largest centered window of the aspect of `size` (h, w)."""
    wide, high = np.array([width], dtype=np.int32), np.array([height], dtype=np.int32)
    return window(wide, high, 1.0, False, 0, np.zeros(1, dtype=np.int64), size[1] / size[0])


def read_mask_layout(path: FileLike, card: DatasetCard, size: tuple[int, int]) -> Tensor:
    """A PNG whose values are mask classes (255: anything) -> `[M,H,W]`; one of another size is cut and resized as masks are in training.

    Resizing takes the nearest pixel.

    Raises:
        DataError: it cannot be read, is no mask, or holds a class that the data set does not name.
    """
    mask = read_mask(path)
    wrong = sorted(
        {int(value) for value in np.unique(mask)}
        - set(range(len(card.mask_classes)))
        - {IGNORE_INDEX, card.ignore_index}
    )
    if wrong:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(card.mask_classes))
        raise DataError(
            f"{path}: holds mask class {wrong[0]}, which data set {card.name!r} does not name; possible: {known}, {IGNORE_INDEX} any"
        )
    mask[mask == card.ignore_index] = IGNORE_INDEX
    view = center_window(mask.shape[1], mask.shape[0], size)
    (left, top), (wide, high) = view.start[0].tolist(), view.size[0].tolist()
    rows, columns = (start + _nearest(side, out) for start, side, out in ((top, high, size[0]), (left, wide, size[1])))
    return mask_layout(torch.from_numpy(mask[rows][:, columns].astype(np.int64))[None], len(card.mask_classes))[0]


def _nearest(side: int, out: int) -> Any:
    """`[out]`: which of `side` pixels lies nearest to the middle of each of `out`."""
    return ((np.arange(out) + 0.5) * side / out).astype(np.int64).clip(0, side - 1)


def read_boxes_layout(path: FileLike, card: DatasetCard, size: tuple[int, int], most: int) -> Tensor:
    """JSON as samples have it, `{"width", "height", "boxes": [[x0, y0, x1, y1, class], ..]}` -> `[K,H,W]`.

    Classes are numbers or names; without width and height the boxes lie in an image of the run's size (height, width). One of another
    size is cut and resized as images are in training.

    Raises:
        DataError: it is not JSON, holds no box, one that is impossible, or one of an unknown class.
    """
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("boxes"), list) or not values["boxes"]:
        raise DataError(
            f'{path}: holds no boxes; write {{"width": .., "height": .., "boxes": [[x0, y0, x1, y1, class], ..]}}'
        )
    width, height = values.get("width", size[1]), values.get("height", size[0])
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE_PIXELS for side in (width, height)):
        raise DataError(f"{path}: width and height have to be whole numbers of pixels, 1 to {MAX_SIDE_PIXELS:,}")
    boxes = [[*box[:4], parse_class(box[4], card)] if _named(box) else box for box in values["boxes"]]
    try:
        found = annotation(json.dumps({"boxes": boxes}).encode(), width, height, np.arange(len(card.classes)))
    except ValueError as error:
        raise DataError(f"{path}: {error} (data set {card.name!r}: {', '.join(card.classes)})") from None
    inside = torch.from_numpy(crop_boxes([found.boxes], center_window(width, height, size), most))
    if not (inside[..., 4] >= 0).any():
        raise DataError(
            f"{path}: none of its boxes lies in the part of {width}x{height} that the run sees, which is {size[1]} to {size[0]}"
        )
    return boxes_layout(inside, len(card.classes), *size)[0]


def _named(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 5 and isinstance(box[4], str)
