"""Regions in COCO's format, polygons and run lengths, as pixel masks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MAX_RUN_BITS = 35
"""Largest number of bits of a run length: more than any image has pixels."""


def polygon(points: Sequence[float], height: int, width: int) -> NDArray[np.bool_]:
    """Rasterize a polygon -> `[H,W]`: the pixels whose centers are inside, by the even-odd rule; clipped to the image.

    In a row, inside and outside alternate wherever an edge crosses the line through the pixel centers. Pillow's
    polygons round corners to whole pixels and include the outline, which enlarges small objects.

    Args:
        points: x0, y0, x1, y1, ... in pixels; (0, 0) is the upper left corner of the image, (0.5, 0.5) the center of
            its first pixel.

    Raises:
        ValueError: the number of coordinates is odd.
    """
    check_points(points)
    corners = np.asarray(points, np.float64).reshape(-1, 2)
    changes = np.zeros((height, width + 1), np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in sorted((y0, y1)))
        if first < last:
            rows = np.arange(first, last)
            crossing = x0 + (rows + 0.5 - y0) / (y1 - y0) * (x1 - x0)
            columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
            changes[rows, columns] ^= True  # an edge crosses each row once, so no index repeats
    return np.logical_xor.accumulate(changes, axis=1)[:, :width]


def check_points(points: Sequence[float]) -> None:
    """Raise `ValueError` if the coordinates of a polygon are not pairs."""
    if len(points) % 2:
        raise ValueError(f"a polygon with {len(points)} numbers; they have to be pairs of x and y")


def run_lengths(text: str) -> list[int]:
    """Decode the run lengths in a string of COCO's compressed form.

    A number is encoded five bits per character, the lowest first: 48 + bits, + 32 if more characters follow. The
    highest bit of the last character is the sign. From the fourth number on, the difference from the number two before
    is stored.

    Raises:
        ValueError: an invalid character, an incomplete number, or a number larger than any image.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= _MAX_RUN_BITS:
            raise ValueError(f"not a compressed run length (invalid character {character!r})")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("a compressed run length that ends in the middle of a number")
    return lengths


def runs(lengths: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Rasterize run lengths -> `[H,W]`: runs of pixels outside and inside alternate, outside first, in column order.

    Raises:
        ValueError: a length is negative, or their sum differs from the number of pixels.
    """
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(
            f"run lengths that add up to {sum(lengths)}; they have to be positive and add up to {width}x{height} pixels"
        )
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T
