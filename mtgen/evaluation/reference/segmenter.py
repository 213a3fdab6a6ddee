"""The reference segmenter: a small network with a fixed architecture and a fixed training, not part of any run."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtgen.evaluation.reference.training import ReferenceModel, TrainingSpec, to_unit_range
from mtgen.evaluation.reference.unet import UNet
from mtgen.schema import IGNORE_INDEX

SEGMENTER_TRAIN_IMAGES = 24_000
"""Length of the training, in images seen, whatever the size of the training set."""
SEGMENTER_BATCH_SIZE = 16
SEGMENTER_PEAK_LR = 2e-3
"""Initial learning rate of Adam; a cosine decays it to zero."""
MAX_SHIFT_PIXELS = 2
"""Augmentation: largest shift along each axis, pixels."""


def shrink_mask(mask: Tensor, like: Tensor) -> Tensor:
    """`[B,H,W]` mask classes -> uint8 on the CPU, resized to the images `like` `[B,C,h,w]`."""
    size = like.shape[2:]
    if mask.shape[1:] == size:
        return mask.to("cpu", torch.uint8)
    return F.interpolate(mask[:, None].float(), size, mode="nearest-exact")[:, 0].to("cpu", torch.uint8)


class Segmenter(ReferenceModel):
    """A U-Net trained on images and their masks when it is constructed; each output location predicts 2x2 pixels.

    Trained on the 4,000 real training digits of the project's test data, it has a mean IoU of 0.779 over 11 classes on
    the 1,000 test digits; without class weights, and after as many images in batches of 32, 0.666.

    Args:
        image: `[N,C,H,W]` uint8.
        mask: `[N,H,W]` uint8 mask classes; 255: unknown.
        classes: number of mask classes.
        spec: how it is trained.
    """

    def __init__(self, image: Tensor, mask: Tensor, classes: int, spec: TrainingSpec) -> None:
        super().__init__(lambda: UNet(image.shape[1], 4 * classes), spec)
        rng, weight = torch.Generator().manual_seed(spec.seed), _class_weights(mask, classes).to(self.device)

        def loss() -> Tensor:
            rows = torch.randint(len(image), (SEGMENTER_BATCH_SIZE,), generator=rng)
            shift = torch.randint(-MAX_SHIFT_PIXELS, MAX_SHIFT_PIXELS + 1, (2,), generator=rng).tolist()
            x, y = (torch.roll(part[rows], shift, (-2, -1)) for part in (image, mask))
            target = y.long().to(self.device)
            total = F.cross_entropy(self._logits(x), target, weight, ignore_index=IGNORE_INDEX, reduction="sum")
            return total / y.numel()

        self.fit(SEGMENTER_PEAK_LR, SEGMENTER_TRAIN_IMAGES, SEGMENTER_BATCH_SIZE, loss)

    def _logits(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        return F.pixel_shuffle(self.network(to_unit_range(image, self.device)), 2)[..., :height, :width]

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` uint8 -> mask classes `[B,H,W]` uint8, on the CPU."""
        return self._logits(image).argmax(1).to("cpu", torch.uint8)


def _class_weights(mask: Tensor, classes: int) -> Tensor:
    """`[K]`: weight of a pixel of each class, inverse to the root of its frequency, 1 on average.

    Without weights, only the background is learned.
    """
    count = torch.bincount(mask.flatten().long(), minlength=IGNORE_INDEX + 1)[:classes].float()
    weight = count.clamp_min(1).rsqrt()
    return weight * count.sum() / (weight * count).sum().clamp_min(1e-12)
