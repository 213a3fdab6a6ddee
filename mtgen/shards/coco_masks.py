"""Regions of an image as COCO's format writes them, polygons and run lengths, as pixels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MAX_RUN_BITS = 35
"""Bits that a run length may have: more than any image has pixels."""


def polygon(points: Sequence[float], height: int, width: int) -> NDArray[np.bool_]:
    """`[H,W]`: the pixels whose centers lie inside, by the even-odd rule; parts outside the image are cut off.

    A row's pixels change sides where an edge crosses the line through their centers. Pillow's polygons cut corners to whole pixels
    and include the outline, which makes small things larger.

    Args:
        points: x0, y0, x1, y1, ... in pixels; (0, 0) is the upper left corner of the image, (0.5, 0.5) its first pixel's center.

    Raises:
        ValueError: a number is without its partner.
    """
    if len(points) % 2:
        raise ValueError(f"a polygon of {len(points)} numbers; they are pairs of x and y")
    corners = np.asarray(points, np.float64).reshape(-1, 2)
    changes = np.zeros((height, width + 1), np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in sorted((y0, y1)))
        if first < last:
            rows = np.arange(first, last)
            crossing = x0 + (rows + 0.5 - y0) / (y1 - y0) * (x1 - x0)
            changes[rows, np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)] ^= (
                True  # an edge is in a row once
            )
    return np.logical_xor.accumulate(changes, axis=1)[:, :width]


def run_lengths(text: str) -> list[int]:
    """The run lengths in a string of COCO's compressed form.

    A number is written from its lowest five bits up, a character for each five: 48 + bits, + 32 where more follow; the highest bit of
    the last five is the sign. From the fourth number on, what is written is the difference from the number two before.

    Raises:
        ValueError: another character is in it, it ends inside a number, or a number is larger than any image.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= _MAX_RUN_BITS:
            raise ValueError(f"not a compressed run length ({character!r} is no part of one)")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("a compressed run length that ends inside a number")
    return lengths


def runs(lengths: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """`[H,W]`: runs of pixels outside and inside by turns, outside first, column after column.

    Raises:
        ValueError: a length is negative, or they do not add up to the image's pixels.
    """
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(
            f"run lengths have to be positive and to add up to {width}x{height} pixels; they add up to {sum(lengths)}"
        )
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T
