"""Boxes as a user has them: in pixels, drawn over pictures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mtgen.visualization.grids import mask_colors

MIN_BOX_SCORE = 0.3
"""Score from which a box counts. As in the demonstrations of Zhou et al. 2019 (CenterNet)."""

MIN_BOX_PIXELS = 0.5
"""Pixels that a box is wide and high at least: a smaller one is nothing."""


class PixelBox(NamedTuple):
    """Corners in pixels, x1 and y1 exclusive, with class number and score."""

    x0: float
    y0: float
    x1: float
    y1: float
    number: int
    score: float

    def moved(self, right: float, down: float) -> "PixelBox":
        """The box somewhere else, by so many pixels."""
        return self._replace(x0=self.x0 + right, y0=self.y0 + down, x1=self.x1 + right, y1=self.y1 + down)

    def row(self, classes: Sequence[str]) -> dict[str, Any]:
        """The box in JSON's types."""
        return {"class": classes[self.number], "number": self.number, "score": self.score, "box": [*self[:4]]}


def in_pixels(found: Tensor, width: int, height: int, least: float, left: int = 0, top: int = 0) -> list[PixelBox]:
    """`[N,6]` boxes in shares of an image's sides, class and score -> those whose score is `least`, in hundredths of its pixels.

    Args:
        width, height: of the image, pixels; `left`, `top`: where that lies in a larger one.
    """
    sides = np.array([width, height, width, height])
    boxes = []
    for *corners, number, score in found.float().cpu().numpy().astype(np.float64).tolist():
        x0, y0, x1, y1 = np.round(np.clip(corners, 0, 1) * sides + [left, top, left, top], 2).tolist()
        if score >= least and x1 - x0 >= MIN_BOX_PIXELS and y1 - y0 >= MIN_BOX_PIXELS:
            boxes.append(PixelBox(x0, y0, x1, y1, int(number), score))
    return boxes


def with_boxes(picture: Image.Image, boxes: Sequence[PixelBox], classes: Sequence[str]) -> Image.Image:
    """A picture with boxes, in its pixels, drawn over it, the class over each where there is room."""
    picture = picture.convert("RGB")
    draw, font, colors = (
        ImageDraw.Draw(picture),
        ImageFont.load_default(12),
        mask_colors([name + " " for name in classes]),
    )
    thick = max(1, max(picture.size) // 256)
    for box in reversed(boxes):  # the surest on top
        color = tuple(colors[box.number].tolist())
        draw.rectangle((box.x0, box.y0, max(box.x1 - 1, box.x0), max(box.y1 - 1, box.y0)), outline=color, width=thick)
        text = f"{classes[box.number]} {box.score:.2f}"
        if font.getlength(text) <= picture.width:
            x, y = min(box.x0, picture.width - font.getlength(text)), max(box.y0 - 14, 0)
            draw.text((x, y), text, fill=color, font=font, stroke_width=2, stroke_fill="black")
    return picture
