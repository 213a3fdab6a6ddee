"""Structural similarity of real test images and their reconstructions: brightness, contrast and structure."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.reconstruction_metric import ReconstructionScore

WINDOW, SIGMA = 11, 1.5
"""Side and standard deviation of the Gaussian window, pixels."""
C1, C2 = 0.01**2, 0.03**2
"""Constants that keep the quotients finite, for pixel values from 0 to 1."""


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Two `[B,C,H,W]` in 0 to 1 -> `[B]`: structural similarity, averaged over channels and the image's windows.

    Source: Wang et al. 2004, equation 13. Images smaller than the window use a smaller one of the same deviation.
    """
    a, b = a.double(), b.double()
    window = [_gaussian(min(WINDOW, side - (side + 1) % 2)).to(a) for side in a.shape[2:]]

    def mean(x: Tensor) -> Tensor:
        rows = F.conv2d(x.flatten(0, 1)[:, None], window[0].view(1, 1, -1, 1))
        return F.conv2d(rows, window[1].view(1, 1, 1, -1))[:, 0].unflatten(0, x.shape[:2])

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a.square(), mean(b * b) - mean_b.square()
    shared = mean(a * b) - mean_a * mean_b
    brightness = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    return (brightness * (2 * shared + C2) / (variance_a + variance_b + C2)).flatten(1).mean(1)


def _gaussian(side: int) -> Tensor:
    weight = (-(torch.arange(side, dtype=torch.float64) - side // 2).square() / (2 * SIGMA**2)).exp()
    return weight / weight.sum()


@METRICS.register("test/reconstruction_ssim")
class ReconstructionSSIM(ReconstructionScore):
    """Structural similarity of test images and their reconstructions, averaged over the images; 1: identical."""

    name = "test/reconstruction_ssim"
    numbers = {name: "higher"}

    def score(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        return ssim((image + 1) / 2, (reconstruction + 1) / 2)
