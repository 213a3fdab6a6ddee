"""Layout files, masks and boxes, converted to the form in which training sees them."""

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
"""Suffix of a layout file -> the modality that it conditions on."""

MAX_SIDE_PIXELS = 1_000_000
"""Maximum side of a layout in pixels."""


def center_window(width: int, height: int, size: tuple[int, int]) -> Window:
    """The part of an image that training sees without random crops: its largest centered window.

    Args:
        width, height: of the image, pixels.
        size: height and width of the run's images, which give the aspect ratio.
    """
    wide, high = np.array([width], dtype=np.int32), np.array([height], dtype=np.int32)
    return window(wide, high, 1.0, False, 0, np.zeros(1, dtype=np.int64), size[1] / size[0])


def read_mask_layout(path: FileLike, card: DatasetCard, size: tuple[int, int]) -> Tensor:
    """Read a PNG whose values are mask classes (255: anything) as one-hot maps `[M,H,W]`.

    A mask of another size is cropped and resized as in training, to the nearest pixel.

    Raises:
        DataError: the file cannot be read, is not a mask, or contains a class that the data set does not have.
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
            f"{path}: contains mask class {wrong[0]}, which data set {card.name!r} does not have; "
            f"possible: {known}, {IGNORE_INDEX} anything"
        )
    mask[mask == card.ignore_index] = IGNORE_INDEX
    view = center_window(mask.shape[1], mask.shape[0], size)
    (left, top), (wide, high) = view.start[0].tolist(), view.size[0].tolist()
    rows, columns = (start + _nearest(side, out) for start, side, out in ((top, high, size[0]), (left, wide, size[1])))
    return mask_layout(torch.from_numpy(mask[rows][:, columns].astype(np.int64))[None], len(card.mask_classes))[0]


def _nearest(side: int, out: int) -> Any:
    """`[out]`: index of the pixel, of `side` pixels, that is nearest to the center of each output pixel."""
    return ((np.arange(out) + 0.5) * side / out).astype(np.int64).clip(0, side - 1)


def read_boxes_layout(path: FileLike, card: DatasetCard, size: tuple[int, int], max_boxes: int) -> Tensor:
    """Read boxes in the samples' JSON format as class maps `[K,H,W]`.

    The format is `{"width", "height", "boxes": [[x0, y0, x1, y1, class], ..]}`, with classes by number or name.
    Width and height default to the run's image size; a layout of another size is cropped and resized as in training.

    Args:
        size: height and width of the run's images.
        max_boxes: boxes that are kept at most.

    Raises:
        DataError: the file is not JSON, has no box, or has a box that is impossible or of an unknown class.
    """
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("boxes"), list) or not values["boxes"]:
        raise DataError(
            f'{path}: contains no boxes; write {{"width": .., "height": .., "boxes": [[x0, y0, x1, y1, class], ..]}}'
        )
    width, height = values.get("width", size[1]), values.get("height", size[0])
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE_PIXELS for side in (width, height)):
        raise DataError(f"{path}: width and height must be whole numbers of pixels, 1 to {MAX_SIDE_PIXELS:,}")
    boxes = [[*box[:4], parse_class(box[4], card)] if _has_class_name(box) else box for box in values["boxes"]]
    try:
        found = annotation(json.dumps({"boxes": boxes}).encode(), width, height, np.arange(len(card.classes)))
    except ValueError as error:
        raise DataError(f"{path}: {error} (data set {card.name!r}: {', '.join(card.classes)})") from None
    inside = torch.from_numpy(crop_boxes([found.boxes], center_window(width, height, size), max_boxes))
    if not (inside[..., 4] >= 0).any():
        raise DataError(
            f"{path}: no box is inside the part of {width}x{height} that the run sees, "
            f"its center at an aspect ratio of {size[1]}:{size[0]}; move the boxes there"
        )
    return boxes_layout(inside, len(card.classes), *size)[0]


def _has_class_name(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 5 and isinstance(box[4], str)
