"""Random brightness, contrast and saturation, different each time an image is read."""

import torch
from numpy.typing import NDArray
from torch import Tensor

from mtgen.utils import counter_rng

LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma (ITU-R BT.601)."""


def color_jitter(image: Tensor, strength: float, seed: int, position: NDArray) -> Tensor:
    """Scale brightness, then contrast, then saturation by random factors in [1 - strength, 1 + strength].

    Source: Howard 2013.

    Args:
        image: `[B,C,H,W]` in [-1,1]; with one channel, saturation does not change it.
        strength: 0 to 1.
        seed, position: key of the random numbers; positions are `[B]`.

    Returns:
        `[B,C,H,W]` in [-1,1].
    """
    # "colour" is part of the seed: another spelling would change the random numbers of every run
    factor = 1 + strength * (2 * counter_rng.uniform(seed, "colour", torch.from_numpy(position), 3) - 1)
    brightness, contrast, saturation = factor.to(image.device)[:, :, None, None, None].unbind(1)
    x = ((image + 1) / 2 * brightness).clamp(0, 1)
    mean = _gray(x).mean((1, 2, 3), keepdim=True)
    x = (mean + (x - mean) * contrast).clamp(0, 1)
    gray = _gray(x)
    return (gray + (x - gray) * saturation).clamp(0, 1) * 2 - 1


def _gray(x: Tensor) -> Tensor:
    """`[B,C,H,W]` -> its luma, `[B,1,H,W]`."""
    if x.shape[1] == 1:
        return x
    return sum(weight * channel for weight, channel in zip(LUMA_WEIGHTS, x.split(1, dim=1), strict=True))
