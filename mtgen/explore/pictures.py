"""Images with their labels as a page shows them: pixels, mask and boxes apart, so that it can show and hide each."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtgen.inference.box_overlay import PixelBox
from mtgen.schema import DatasetCard
from mtgen.visualization.grids import box_colors, mask_colors
from mtgen.visualization.layers import legend

MAX_PAGE_IMAGE_PIXELS = 1024
"""Pixels of the longer side of an image on the page; a larger one is shown reduced."""
UNKNOWN_COLOR = (128, 128, 128)


def frame(
    picture: Image.Image, mask: NDArray[np.uint8] | None, boxes: Sequence[PixelBox] | None, card: DatasetCard
) -> dict[str, Any]:
    """One image as the page's script draws it: boxes in shares of its sides, with class and score; `kinds`: the mask classes in it."""
    wide, high = picture.size
    small = picture.copy()
    small.thumbnail((MAX_PAGE_IMAGE_PIXELS, MAX_PAGE_IMAGE_PIXELS), Image.Resampling.BILINEAR)
    drawn = (
        None if mask is None else colorize_mask(mask, card.mask_classes).resize(small.size, Image.Resampling.NEAREST)
    )
    shares = [[b.x0 / wide, b.y0 / high, b.x1 / wide, b.y1 / high, b.number, b.score] for b in boxes or []]
    return {
        "width": small.width,
        "height": small.height,
        "images": uri(small),
        "masks": "" if drawn is None else uri(drawn),
        "boxes": [[shares]],
        "kinds": [] if mask is None else np.unique(mask).tolist(),
    }


def colorize_mask(mask: NDArray[np.uint8], names: Sequence[str]) -> Image.Image:
    """`[h,w]` mask classes -> their colors, `RGBA`; a background is clear, a class without a name gray."""
    table = np.tile(np.array([*UNKNOWN_COLOR, 255], np.uint8), (256, 1))
    colors = mask_colors(names[:256])
    table[: len(colors), :3] = colors.clip(0)
    table[: len(colors), 3] = np.where(colors[:, 0] < 0, 0, 255)
    return Image.fromarray(table[mask])


def legends(card: DatasetCard) -> dict[str, list[list[str]]]:
    """Name and color of every mask class and of every box's class."""
    return {
        "masks": legend(card.mask_classes, mask_colors(card.mask_classes)),
        "boxes": legend(card.classes, box_colors(card)),
    }


def uri(picture: Image.Image) -> str:
    """A picture as a PNG in a data URI; loopback is fast, so little time goes into making it small."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
