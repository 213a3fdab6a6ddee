"""A run's pictures in layers: images, masks and boxes apart, so that a page can show and hide them.

A sheet is three files in the run's `samples/layers/`: `000012000-grid.webp` holds the images, a row a sample and a
column a panel, `000012000-grid-mask.png` the masks in the same places (clear where there is none), and
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
from mtgen.visualization.grids import MIN_SHOWN_SCORE, box_colors, mask_colors, to_pixels

LAYERS_FOLDER = "samples/layers"
MAX_LAYER_SIDE_PIXELS = 160
"""Pixels of the longer side of a stored image; larger ones are made smaller."""
MAX_LOSSLESS_LAYER_PIXELS = 64
"""Images up to so many pixels a side are stored without loss: their pixels are seen one by one."""


@dataclass
class GridPanel:
    """One column of a sheet.

    Attributes:
        image: `[B,C,H,W]` in [-1, 1]; `None`: black.
        mask: `[B,H,W]` mask classes.
        boxes: `[B,N,5]` (class -1: none) or `[B,N,6]` (with a score): x0, y0, x1, y1 as shares of the sides, class.
    """

    name: str
    image: Tensor | None = None
    mask: Tensor | None = None
    boxes: Tensor | None = None


@dataclass
class LayeredGrid:
    """Pictures of one kind at one moment.

    Attributes:
        captions: `[B]` what stands over each row.
        marks: `[B]` "right", "wrong" or "" for what was read.
    """

    title: str
    panels: list[GridPanel]
    captions: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)


def write_layered_grid(folder: Path, images: int, name: str, sheet: LayeredGrid, card: DatasetCard) -> None:
    """Write a sheet of a run's `folder` after so many images."""
    to = folder / LAYERS_FOLDER
    to.mkdir(parents=True, exist_ok=True)
    stem = f"{images:09d}-{name}"
    size = next(tuple(shown.shape[-2:]) for p in sheet.panels for shown in (p.image, p.mask) if shown is not None)
    rows = max(len(layer) for p in sheet.panels for layer in (p.image, p.mask) if layer is not None)
    height, width = (max(1, round(side * min(1.0, MAX_LAYER_SIDE_PIXELS / max(size)))) for side in size)
    atlas = np.concatenate([_pixels(panel.image, rows, (height, width)) for panel in sheet.panels], 2).reshape(
        -1, len(sheet.panels) * width, 3
    )
    picture = Image.fromarray(atlas)
    picture.save(
        to / f"{stem}.webp", **({"lossless": True} if max(size) <= MAX_LOSSLESS_LAYER_PIXELS else {"quality": 85})
    )
    if masked := any(panel.mask is not None for panel in sheet.panels):
        masks = np.concatenate([_mask(panel.mask, rows, (height, width), card) for panel in sheet.panels], 2)
        Image.fromarray(masks.reshape(-1, len(sheet.panels) * width, 4)).save(to / f"{stem}-mask.png", optimize=True)
    about = {
        "title": sheet.title,
        "panels": [panel.name for panel in sheet.panels],
        "rows": rows,
        "width": width,
        "height": height,
        "captions": sheet.captions,
        "marks": sheet.marks,
        "masked": masked,
        "boxes": [_boxes(panel.boxes) for panel in sheet.panels],
        "mask_legend": legend(card.mask_classes, mask_colors(card.mask_classes)) if masked else [],
        "box_legend": legend(card.classes, box_colors(card)),
    }
    (to / f"{stem}.json").write_text(json.dumps(about), encoding="utf-8")


def _pixels(image: Tensor | None, rows: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """`[B,C,H,W]` -> `[B,h,w,3]`; black where there is none."""
    if image is None:
        return np.zeros((rows, *size, 3), np.uint8)
    if tuple(image.shape[2:]) != size:
        image = F.interpolate(image.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return to_pixels(image)


def _mask(mask: Tensor | None, rows: int, size: tuple[int, int], card: DatasetCard) -> NDArray[np.uint8]:
    """`[B,H,W]` classes -> `[B,h,w,4]` colors; background and unknown pixels are clear."""
    if mask is None:
        return np.zeros((rows, *size, 4), np.uint8)
    near = F.interpolate(mask[:, None].float(), size, mode="nearest")[:, 0].to("cpu", torch.int64).numpy()
    colors = np.concatenate([mask_colors(card.mask_classes), [[-1, -1, -1]]])  # the last: unknown
    color = colors[np.where((near >= 0) & (near < len(card.mask_classes)), near, -1)]
    return np.concatenate([color.clip(0), np.where(color[..., :1] >= 0, 255, 0)], -1).astype(np.uint8)


def _boxes(boxes: Tensor | None) -> list[list[list[float]]] | None:
    """The boxes that are there, by row: x0, y0, x1, y1, class; rounded to a thousandth of the image."""
    if boxes is None:
        return None
    there = boxes[..., 4] >= 0 if boxes.shape[-1] == 5 else boxes[..., 5] >= MIN_SHOWN_SCORE
    return [
        [[round(v, 3) for v in box[:5]] for box in rows[chosen].tolist()]
        for rows, chosen in zip(boxes.cpu(), there.cpu(), strict=True)
    ]


def legend(names: list[str], colors: NDArray[np.int16]) -> list[list[str]]:
    """Name and color of each class; a background's color is empty."""
    return [
        [name, "" if color[0] < 0 else "#{:02x}{:02x}{:02x}".format(*color)]
        for name, color in zip(names, colors.tolist(), strict=True)
    ]
