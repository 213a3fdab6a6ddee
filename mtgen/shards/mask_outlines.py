"""Outlines of regions in masks, as polygons along the edges of their pixels: exact, so that they give the mask back."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Point = tuple[int, int]
Outline = list[Point]
"""Corners x, y of a closed polygon in pixels; (0, 0) is the upper left corner of the image."""


def parts(region: NDArray[np.bool_]) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Yield the connected parts of a region `[H,W]` as (left, top, pixels `[h,w]`), cropped to their bounds.

    Pixels that only touch at a corner are not connected.
    """
    numbers, _ = ndimage.label(region)
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), 1):
        yield columns.start, rows.start, numbers[rows, columns] == number


def outlines(part: NDArray[np.bool_], left: int = 0, top: int = 0) -> list[Outline]:
    """Trace a connected part `[h,w]`: its outer outline, followed by those of its holes, moved by `left` and `top`.

    The outer outline runs clockwise, holes counterclockwise; the even-odd rule gives the part back.
    """
    steps = _boundary(part)
    found: list[Outline] = []
    for start in sorted(steps, key=lambda point: (point[1], point[0])):
        while steps[start]:
            outline, point, direction = [], start, (0, 0)
            while True:
                clockwise = (-direction[1], direction[0])
                ahead = clockwise if clockwise in steps[point] else steps[point][0]
                steps[point].remove(ahead)
                if ahead != direction:
                    outline.append((point[0] + left, point[1] + top))
                direction, point = ahead, (point[0] + ahead[0], point[1] + ahead[1])
                if point == start:
                    break
            found.append(outline)
    return found


def _boundary(part: NDArray[np.bool_]) -> dict[Point, list[Point]]:
    """Corner of a pixel -> directions of the boundary's edges that start there, with the part to their right."""
    around = np.pad(part, 1)
    sides = [  # (is the neighbor outside, offset of the edge's start from the pixel, direction of the edge)
        (~around[:-2, 1:-1], (0, 0), (1, 0)),
        (~around[1:-1, 2:], (1, 0), (0, 1)),
        (~around[2:, 1:-1], (1, 1), (-1, 0)),
        (~around[1:-1, :-2], (0, 1), (0, -1)),
    ]
    steps: dict[Point, list[Point]] = defaultdict(list)
    for outside, (right, down), direction in sides:
        rows, columns = np.nonzero(part & outside)
        for x, y in zip((columns + right).tolist(), (rows + down).tolist(), strict=True):
            steps[x, y].append(direction)
    return steps


def joined(found: list[Outline]) -> Outline:
    """Join outlines into one polygon, for formats that have one polygon per object.

    Each outline is connected to those before it by a bridge without width, traveled in both directions. A bridge runs
    along the edges of pixels, so that it covers no pixel's center.
    """
    polygon = list(found[0])
    for outline in found[1:]:
        x, y = outline[0]
        nearest = min(range(len(polygon)), key=lambda i: abs(polygon[i][0] - x) + abs(polygon[i][1] - y))
        corner = (x, polygon[nearest][1])
        bridge = [polygon[nearest], corner, *outline, outline[0], corner]
        polygon[nearest:nearest] = bridge
    return polygon
