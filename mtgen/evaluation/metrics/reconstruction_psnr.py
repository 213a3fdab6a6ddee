"""How close reconstructions of real test images come."""

import torch
from torch import Tensor

from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.reconstruction_metric import ReconstructionScore

MAX_PSNR_DB = 100.0
"""dB: what an image counts that is reconstructed (almost) exactly; the ratio itself would be infinite."""


@METRICS.register("test/reconstruction_psnr")
class ReconstructionPSNR(ReconstructionScore):
    """Peak signal-to-noise ratio 10 log10(2^2 / MSE) of images in [-1, 1], in dB, averaged over the test images."""

    name = "test/reconstruction_psnr"
    numbers = {name: "higher"}

    def score(self, image: Tensor, rebuilt: Tensor) -> Tensor:
        error = (rebuilt.double() - image).square().flatten(1).mean(1)
        return (10 * torch.log10(4 / error)).clamp(max=MAX_PSNR_DB)
