"""A run's grids in layers: images, masks and boxes are separate, so that a page can show and hide them.

A grid is three files in the run's `samples/layers/`: `000012000-grid.webp` holds the images, one row per sample and one
column per panel, `000012000-grid-mask.png` the masks in the same cells (transparent where there is none), and
`000012000-grid.json` everything else.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mtgen.schema import DatasetCard
from mtgen.visualization.grids import box_colors, mask_colors, shown_boxes, to_pixels

LAYERS_FOLDER = "samples/layers"
MAX_LAYER_SIDE_PIXELS = 160
"""Longer side of a stored image, pixels; larger images are reduced."""
MAX_LOSSLESS_LAYER_PIXELS = 64
"""Images up to this side are stored losslessly, since their single pixels are visible."""


@dataclass
class GridPanel:
    """One column of a grid.

    Attributes:
        image: `[B,C,H,W]` in [-1, 1]; `None`: black.
        mask: `[B,H,W]` mask classes.
        boxes: `[B,N,5]` (class -1: padding) or `[B,N,6]` (with a score): x0, y0, x1, y1 (fractions), class.
    """

    name: str
    image: Tensor | None = None
    mask: Tensor | None = None
    boxes: Tensor | None = None


@dataclass
class LayeredGrid:
    """A grid at one position of the run.

    Attributes:
        captions: `[B]` the text of each row.
        marks: `[B]` "right", "wrong" or "" for the prediction.
    """

    title: str
    panels: list[GridPanel]
    captions: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)


def write_layered_grid(folder: Path, images: int, name: str, grid: LayeredGrid, card: DatasetCard) -> None:
    """Write a grid to a run's `folder` at the position `images`."""
    to = folder / LAYERS_FOLDER
    to.mkdir(parents=True, exist_ok=True)
    stem = f"{images:09d}-{name}"
    size = next(tuple(shown.shape[-2:]) for p in grid.panels for shown in (p.image, p.mask) if shown is not None)
    rows = max(len(layer) for p in grid.panels for layer in (p.image, p.mask) if layer is not None)
    height, width = (max(1, round(side * min(1.0, MAX_LAYER_SIDE_PIXELS / max(size)))) for side in size)
    atlas = np.concatenate([_pixels(panel.image, rows, (height, width)) for panel in grid.panels], 2).reshape(
        -1, len(grid.panels) * width, 3
    )
    picture = Image.fromarray(atlas)
    picture.save(
        to / f"{stem}.webp", **({"lossless": True} if max(size) <= MAX_LOSSLESS_LAYER_PIXELS else {"quality": 85})
    )
    if masked := any(panel.mask is not None for panel in grid.panels):
        masks = np.concatenate([_mask(panel.mask, rows, (height, width), card) for panel in grid.panels], 2)
        Image.fromarray(masks.reshape(-1, len(grid.panels) * width, 4)).save(to / f"{stem}-mask.png", optimize=True)
    about = {
        "title": grid.title,
        "panels": [panel.name for panel in grid.panels],
        "rows": rows,
        "width": width,
        "height": height,
        "captions": grid.captions,
        "marks": grid.marks,
        "masked": masked,
        "boxes": [_boxes(panel.boxes) for panel in grid.panels],
        "mask_legend": legend(card.mask_classes, mask_colors(card.mask_classes)) if masked else [],
        "box_legend": legend(card.classes, box_colors(card)),
    }
    (to / f"{stem}.json").write_text(json.dumps(about), encoding="utf-8")


def _pixels(image: Tensor | None, rows: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """`[B,C,H,W]` -> `[B,h,w,3]`; black where there is no image."""
    if image is None:
        return np.zeros((rows, *size, 3), np.uint8)
    if tuple(image.shape[2:]) != size:
        image = F.interpolate(image.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return to_pixels(image)


def _mask(mask: Tensor | None, rows: int, size: tuple[int, int], card: DatasetCard) -> NDArray[np.uint8]:
    """`[B,H,W]` classes -> `[B,h,w,4]` colors; background and unknown pixels are transparent."""
    if mask is None:
        return np.zeros((rows, *size, 4), np.uint8)
    near = F.interpolate(mask[:, None].float(), size, mode="nearest")[:, 0].to("cpu", torch.int64).numpy()
    colors = np.concatenate([mask_colors(card.mask_classes), [[-1, -1, -1]]])  # the last: unknown
    color = colors[np.where((near >= 0) & (near < len(card.mask_classes)), near, -1)]
    return np.concatenate([color.clip(0), np.where(color[..., :1] >= 0, 255, 0)], -1).astype(np.uint8)


def _boxes(boxes: Tensor | None) -> list[list[list[float]]] | None:
    """The boxes shown in each row: x0, y0, x1, y1, class; rounded to a thousandth of the image."""
    if boxes is None:
        return None
    return [
        [[round(v, 3) for v in box[:5]] for box in rows[shown].tolist()]
        for rows, shown in zip(boxes.cpu(), shown_boxes(boxes).cpu(), strict=True)
    ]


def legend(names: list[str], colors: NDArray[np.int16]) -> list[list[str]]:
    """Name and color of each class; the color of a background is empty."""
    return [
        [name, "" if color[0] < 0 else "#{:02x}{:02x}{:02x}".format(*color)]
        for name, color in zip(names, colors.tolist(), strict=True)
    ]
