"""How close reconstructions of real test images come."""

import torch

from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped
from mtgen.schema import Batch, Canvas, Prediction

CEILING = 100.0
"""dB: what an image counts that is reconstructed (almost) exactly; the ratio itself would be infinite."""


@METRICS.register("test/reconstruction_psnr")
class ReconstructionPSNR(Metric):
    """Peak signal-to-noise ratio 10 log10(2^2 / MSE) of images in [-1, 1], in dB, averaged over the test images."""

    reconstructs = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.total, self.count = 0.0, 0

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        if reconstruction is None:
            raise Skipped("the run does not reconstruct images")
        error = (reconstruction.image.double().clamp(-1, 1) - batch.image).square().flatten(1).mean(1)
        self.total += float((10 * torch.log10(4 / error)).clamp(max=CEILING).sum())
        self.count += len(batch)

    def compute(self) -> dict[str, float]:
        if not self.count:
            raise Skipped("no test image")
        return {"test/reconstruction_psnr": self.total / self.count}
