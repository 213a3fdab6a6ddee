"""Peak signal-to-noise ratio of reconstructions of real test images."""

import torch
from torch import Tensor

from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.reconstruction_metric import ReconstructionScore

MAX_PSNR_DB = 100.0
"""Value of an (almost) exact reconstruction, dB, whose ratio would be infinite."""


@METRICS.register("test/reconstruction_psnr")
class ReconstructionPSNR(ReconstructionScore):
    """Peak signal-to-noise ratio 10 log10(2^2 / MSE) of images in [-1, 1], in dB, averaged over the test images."""

    name = "test/reconstruction_psnr"
    numbers = {name: "higher"}

    def score(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        error = (reconstruction.double() - image).square().flatten(1).mean(1)
        return (10 * torch.log10(4 / error)).clamp(max=MAX_PSNR_DB)
