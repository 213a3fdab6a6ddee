"""The reference detector: a small network with a fixed architecture and a fixed training, not part of any run."""

import torch
from torch import Tensor

from mtgen.evaluation.reference.training import ReferenceModel, TrainingSpec, to_unit_range
from mtgen.evaluation.reference.unet import UNet
from mtgen.networks.center_maps import INITIAL_CENTER_LOGIT, decode, encode, focal

DETECTOR_TRAIN_IMAGES = 24_000
"""Length of the training, in images seen, whatever the size of the training set."""
DETECTOR_BATCH_SIZE = 16
DETECTOR_PEAK_LR = 2e-3
"""Initial learning rate of Adam; a cosine decays it to zero."""
SIZE_LOSS_WEIGHT = 5.0
"""Weight of the size error, relative to that of the center."""


class Detector(ReferenceModel):
    """A U-Net that predicts boxes as centers with sizes, trained on images and their boxes when it is constructed.

    Source: Zhou et al. 2019 (CenterNet), on cells of two pixels. Trained on the 4,000 real training digits of the
    project's test data, it has an average precision of 0.982 on the 1,000 test digits at an IoU of 0.5, and 0.821 over
    IoUs of 0.5 to 0.95.

    Args:
        image: `[N,C,H,W]` uint8.
        boxes: `[N,M,5]`, see `mtgen.schema.Batch`.
        classes: number of classes.
        spec: how it is trained.
    """

    def __init__(self, image: Tensor, boxes: Tensor, classes: int, spec: TrainingSpec) -> None:
        super().__init__(lambda: UNet(image.shape[1], classes + 4), spec)
        self.classes = classes
        rng = torch.Generator().manual_seed(spec.seed)

        def loss() -> Tensor:
            rows = torch.randint(len(image), (DETECTOR_BATCH_SIZE,), generator=rng)
            logits, size, offset = self._maps(image[rows])
            target = encode(boxes[rows].to(self.device), classes, (logits.shape[2], logits.shape[3]))
            error = SIZE_LOSS_WEIGHT * (size - target.size).abs() + (offset - target.offset).abs()
            count = target.here.sum((1, 2, 3)).clamp_min(1)
            return ((focal(logits, target) + (error * target.here).sum((1, 2, 3))) / count).mean()

        self.fit(DETECTOR_PEAK_LR, DETECTOR_TRAIN_IMAGES, DETECTOR_BATCH_SIZE, loss)

    def _maps(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Center logits `[B,K,h,w]`, sizes and offsets `[B,2,h,w]`."""
        heat, size, offset = self.network(to_unit_range(image, self.device)).split([self.classes, 2, 2], 1)
        return heat + INITIAL_CENTER_LOGIT, size.sigmoid(), offset.sigmoid()

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` uint8 -> boxes `[B,M,6]` on the CPU, see `mtgen.schema.Prediction`."""
        heat, size, offset = self._maps(image)
        return decode(heat.sigmoid(), size, offset).cpu()
