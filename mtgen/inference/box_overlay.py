"""Boxes in pixels, as users see them, and drawing them over pictures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mtgen.visualization.grids import mask_colors

MIN_BOX_SCORE = 0.3
"""Default minimum score of a box; as in the demos of Zhou et al. 2019 (CenterNet)."""

MIN_BOX_PIXELS = 0.5
"""Minimum width and height of a box in pixels; a smaller one is discarded."""


class PixelBox(NamedTuple):
    """A box with its corners in pixels (x1 and y1 exclusive), class number and score."""

    x0: float
    y0: float
    x1: float
    y1: float
    number: int
    score: float

    def shifted(self, right: float, down: float) -> "PixelBox":
        """The box, shifted by this many pixels."""
        return self._replace(x0=self.x0 + right, y0=self.y0 + down, x1=self.x1 + right, y1=self.y1 + down)

    def row(self, classes: Sequence[str]) -> dict[str, Any]:
        """The box as a JSON object, with its class by name."""
        return {"class": classes[self.number], "number": self.number, "score": self.score, "box": [*self[:4]]}


def to_pixel_boxes(
    found: Tensor, width: int, height: int, min_score: float, left: int = 0, top: int = 0
) -> list[PixelBox]:
    """Convert boxes `[N,6]` (corners as fractions of the image's sides, class, score) to pixels, rounded to 0.01.

    Args:
        width, height: size of the image, pixels.
        min_score: boxes with a lower score are discarded.
        left, top: position of the image in a larger one, which is added to the corners.
    """
    sides = np.array([width, height, width, height])
    boxes = []
    for *corners, number, score in found.float().cpu().numpy().astype(np.float64).tolist():
        x0, y0, x1, y1 = np.round(np.clip(corners, 0, 1) * sides + [left, top, left, top], 2).tolist()
        if score >= min_score and x1 - x0 >= MIN_BOX_PIXELS and y1 - y0 >= MIN_BOX_PIXELS:
            boxes.append(PixelBox(x0, y0, x1, y1, int(number), score))
    return boxes


def draw_boxes(picture: Image.Image, boxes: Sequence[PixelBox], classes: Sequence[str]) -> Image.Image:
    """A copy of the picture with the boxes drawn over it, labeled with class and score where there is room."""
    picture = picture.convert("RGB")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(12)
    colors = mask_colors([name + " " for name in classes])
    thick = max(1, max(picture.size) // 256)
    for box in reversed(boxes):  # the most confident on top
        color = tuple(colors[box.number].tolist())
        draw.rectangle((box.x0, box.y0, max(box.x1 - 1, box.x0), max(box.y1 - 1, box.y0)), outline=color, width=thick)
        text = f"{classes[box.number]} {box.score:.2f}"
        if font.getlength(text) <= picture.width:
            x, y = min(box.x0, picture.width - font.getlength(text)), max(box.y0 - 14, 0)
            draw.text((x, y), text, fill=color, font=font, stroke_width=2, stroke_fill="black")
    return picture
