"""Images with their labels as the page shows them: pixels, mask and boxes separately, so that each can be hidden."""

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
"""Longer side of an image on the page; a larger image is reduced."""
UNKNOWN_COLOR = (128, 128, 128)
"""Color of mask classes without a name."""


def frame(
    picture: Image.Image, mask: NDArray[np.uint8] | None, boxes: Sequence[PixelBox] | None, card: DatasetCard
) -> dict[str, Any]:
    """One image in the form that the page's scripts expect.

    Returns:
        `images` and `masks`: PNG as data URIs; `boxes`: corners as fractions of the sides, class and score;
        `mask_classes`: numbers of the mask classes in the image.
    """
    wide, high = picture.size
    small = picture.copy()
    small.thumbnail((MAX_PAGE_IMAGE_PIXELS, MAX_PAGE_IMAGE_PIXELS), Image.Resampling.BILINEAR)
    colored = None
    if mask is not None:
        colored = colorize_mask(mask, card.mask_classes).resize(small.size, Image.Resampling.NEAREST)
    rows = [[b.x0 / wide, b.y0 / high, b.x1 / wide, b.y1 / high, b.number, b.score] for b in boxes or []]
    return {
        "width": small.width,
        "height": small.height,
        "images": data_uri(small),
        "masks": "" if colored is None else data_uri(colored),
        "boxes": [[rows]],
        "mask_classes": [] if mask is None else np.unique(mask).tolist(),
    }


def colorize_mask(mask: NDArray[np.uint8], names: Sequence[str]) -> Image.Image:
    """Color mask classes `[h,w]` as `RGBA`: the background is transparent, classes without a name are gray."""
    table = np.tile(np.array([*UNKNOWN_COLOR, 255], np.uint8), (256, 1))
    colors = mask_colors(names[:256])
    table[: len(colors), :3] = colors.clip(0)
    table[: len(colors), 3] = np.where(colors[:, 0] < 0, 0, 255)
    return Image.fromarray(table[mask])


def legends(card: DatasetCard) -> dict[str, list[list[str]]]:
    """Name and color of every mask class (`masks`) and of every class of boxes (`boxes`)."""
    return {
        "masks": legend(card.mask_classes, mask_colors(card.mask_classes)),
        "boxes": legend(card.classes, box_colors(card)),
    }


def data_uri(picture: Image.Image) -> str:
    """Encode a picture as PNG in a data URI; compression is low, since loopback is fast."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
