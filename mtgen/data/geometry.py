"""Crop windows: one window per position, shared by the image, its mask and its boxes."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mtgen.utils import counter_rng

ASPECT_RANGE = (3 / 4, 4 / 3)
"""Range of a random crop's aspect ratio, relative to that of the output (Szegedy et al. 2015)."""


@dataclass(frozen=True)
class Window:
    """Crop windows in pixels of the images as displayed, and whether each crop is mirrored afterwards.

    Attributes:
        start: `[B,2]` int32, x and y of the upper left pixel.
        size: `[B,2]` int32, width and height, at least 1.
        mirror: `[B]` bool, whether left and right are swapped.
    """

    start: NDArray[np.int32]
    size: NDArray[np.int32]
    mirror: NDArray[np.bool_]

    def row(self, i: int) -> "Window":
        """The window of sample `i` alone, with a batch size of 1."""
        return Window(self.start[i : i + 1], self.size[i : i + 1], self.mirror[i : i + 1])


def window(
    width: NDArray[np.int32],
    height: NDArray[np.int32],
    crop: float,
    flip: bool,
    seed: int,
    position: NDArray[np.int64],
    aspect: float = 1.0,
) -> Window:
    """The crop window of each sample, a function of its size, the seed and its position alone.

    Args:
        width, height: `[B]`, sizes of the images as displayed, pixels.
        crop: smallest fraction of the image's area that is kept; 1: the largest centered window of `aspect`.
        flip: mirror half of the samples, at random.
        seed, position: key of the random numbers; positions are `[B]`.
        aspect: width / height of the output; random crops vary around it.
    """
    random = np.zeros((len(position), 5))
    if crop < 1 or flip:
        random = (
            counter_rng.uniform(seed, "crop", torch.from_numpy(np.asarray(position, dtype=np.int64)), 5)
            .numpy()
            .astype(np.float64)
        )
    w, h = np.asarray(width, dtype=np.float64), np.asarray(height, dtype=np.float64)
    if crop == 1.0:
        size = np.stack(
            [np.clip(np.rint(np.minimum(w, h * aspect)), 1, w), np.clip(np.rint(np.minimum(h, w / aspect)), 1, h)], 1
        )
        start = np.stack([(w - size[:, 0]) // 2, (h - size[:, 1]) // 2], 1)
    else:
        area = (crop + (1 - crop) * random[:, 0]) * w * h
        ratio = aspect * np.exp(np.log(ASPECT_RANGE[0]) + np.log(ASPECT_RANGE[1] / ASPECT_RANGE[0]) * random[:, 1])
        size = np.stack(
            [np.clip(np.rint(np.sqrt(area * ratio)), 1, w), np.clip(np.rint(np.sqrt(area / ratio)), 1, h)], 1
        )
        start = np.floor(random[:, 2:4] * (np.stack([w, h], 1) - size + 1))
    mirror = (random[:, 4] < 0.5) if flip else np.zeros(len(w), dtype=np.bool_)
    return Window(start.astype(np.int32), size.astype(np.int32), mirror)
