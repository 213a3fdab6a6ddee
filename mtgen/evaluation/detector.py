"""A small detector of fixed shape and fixed training: a yardstick for boxes, not a part of any run."""

import torch
from torch import Tensor

from mtgen.evaluation.reader_training import ReferenceModel, TrainingSpec, to_unit_range
from mtgen.evaluation.unet import UNet
from mtgen.networks.center_maps import INITIAL_CENTER_LOGIT, decode, encode, focal

DETECTOR_TRAIN_IMAGES = 24_000
"""Length of the training, in images seen, whatever the number of different ones."""
DETECTOR_BATCH_SIZE = 16
DETECTOR_PEAK_LR = 2e-3
"""Learning rate of Adam, from which a cosine leads to zero."""
SIZE_LOSS_WEIGHT = 5.0
"""Weight of the sizes' error beside the centers'."""


class Detector(ReferenceModel):
    """A U-Net that reads boxes as centers with sizes, trained on images and their boxes when it is made.

    Source: Zhou et al. 2019 (CenterNet), on cells of two pixels. Trained on the 4,000 real training digits of the project's test data, it
    finds the boxes of the 1,000 test digits with an average precision of 0.982 at an overlap of 0.5, and 0.821 over 0.5 to 0.95.

    Args:
        image: `[N,C,H,W]` uint8.
        boxes: `[N,M,5]`, see `mtgen.schema.Batch`.
        classes: how many there are.
        making: how it comes about.
    """

    def __init__(self, image: Tensor, boxes: Tensor, classes: int, making: TrainingSpec) -> None:
        super().__init__(lambda: UNet(image.shape[1], classes + 4), making)
        self.classes = classes
        random = torch.Generator().manual_seed(making.seed)

        def loss() -> Tensor:
            rows = torch.randint(len(image), (DETECTOR_BATCH_SIZE,), generator=random)
            logits, size, offset = self._maps(image[rows])
            target = encode(boxes[rows].to(self.device), classes, (logits.shape[2], logits.shape[3]))
            apart = SIZE_LOSS_WEIGHT * (size - target.size).abs() + (offset - target.offset).abs()
            found = target.here.sum((1, 2, 3)).clamp_min(1)
            return ((focal(logits, target) + (apart * target.here).sum((1, 2, 3))) / found).mean()

        self.fit(DETECTOR_PEAK_LR, DETECTOR_TRAIN_IMAGES, DETECTOR_BATCH_SIZE, loss)

    def _maps(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Center logits `[B,K,h,w]`, sizes and offsets `[B,2,h,w]`."""
        heat, size, offset = self.network(to_unit_range(image, self.device)).split([self.classes, 2, 2], 1)
        return heat + INITIAL_CENTER_LOGIT, size.sigmoid(), offset.sigmoid()

    @torch.no_grad()
    def read(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` uint8 -> boxes `[B,M,6]` on the CPU, see `mtgen.schema.Prediction`."""
        heat, size, offset = self._maps(image)
        return decode(heat.sigmoid(), size, offset).cpu()
