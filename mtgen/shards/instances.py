"""Objects of a sample: its boxes, and the parts of its mask that belong to each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtgen.schema import IGNORE_INDEX
from mtgen.shards.annotated import BACKGROUND
from mtgen.shards.mask_outlines import parts

Box = tuple[float, float, float, float]


@dataclass
class Instance:
    """One object.

    Attributes:
        name: name of its class.
        box: x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
        boxed: whether the sample has the box; otherwise it is the bounds of a part of the mask.
        region: `[H,W]`: its pixels; no pixel if it is hidden by others; `None` if they are not known.
    """

    name: str
    box: Box
    boxed: bool
    region: NDArray[np.bool_] | None = field(default=None, repr=False)


def instances(
    boxes: Sequence[Sequence[float]] | None,
    mask: NDArray[np.integer] | None,
    classes: Sequence[str],
    mask_classes: Sequence[str],
) -> list[Instance]:
    """The objects of a sample: its boxes in order, followed by the connected parts of its mask that are in no box.

    A pixel of the mask belongs to the smallest box of its class that contains its center. Pixels outside of all boxes
    belong to the box of most pixels in their connected part. Mask classes called "background" give no objects.

    Args:
        boxes: rows `[x0,y0,x1,y1,class]` in pixels; `None`: not known.
        mask: `[H,W]` mask classes, 255 where unknown; `None`: not known.
    """
    found = [
        Instance(classes[int(label)], (float(x0), float(y0), float(x1), float(y1)), True)
        for x0, y0, x1, y1, label in boxes or []
    ]
    if mask is None:
        return found
    for item in found:
        inside = mask[_pixels_of(item.box)]
        named = item.name in mask_classes and not (inside == IGNORE_INDEX).any()
        item.region = np.zeros(mask.shape, np.bool_) if named else None
    for number in np.unique(mask).tolist():
        if number < len(mask_classes) and mask_classes[number] != BACKGROUND:
            boxed = [item for item in found if item.boxed and item.name == mask_classes[number]]
            found += _divide(mask == number, mask_classes[number], boxed)
    return found


def _divide(region: NDArray[np.bool_], name: str, boxed: list[Instance]) -> list[Instance]:
    """Give the pixels of a class `[H,W]` to the objects that have boxes; returns objects for the parts in no box."""
    owner = np.full(region.shape, -1)
    for i in sorted(range(len(boxed)), key=lambda i: -_area(boxed[i].box)):
        owner[_pixels_of(boxed[i].box)] = i
    others = []
    for left, top, part in parts(region):
        place = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
        owners = owner[place][part]
        known = owners[owners >= 0]
        pixels = np.zeros(region.shape, np.bool_)
        if not known.size:
            pixels[place] = part
            bounds = (float(left), float(top), float(left + part.shape[1]), float(top + part.shape[0]))
            others.append(Instance(name, bounds, False, pixels))
            continue
        owners = np.where(owners >= 0, owners, np.bincount(known).argmax())
        for i in np.unique(owners).tolist():
            pixels = np.zeros(region.shape, np.bool_)
            pixels[place][part] = owners == i
            earlier = boxed[i].region
            boxed[i].region = pixels if earlier is None else earlier | pixels
    return others


def _pixels_of(box: Box) -> tuple[slice, slice]:
    """Rows and columns of the pixels whose centers are in a box."""
    x0, y0, x1, y1 = (int(np.ceil(value - 0.5)) for value in box)
    return slice(y0, y1), slice(x0, x1)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
