"""A small segmenter of fixed shape and fixed training: a yardstick for masks, not a part of any run."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtgen.evaluation.reader_training import ReferenceModel, TrainingSpec, to_unit_range
from mtgen.evaluation.unet import UNet
from mtgen.schema import IGNORE_INDEX

SEGMENTER_TRAIN_IMAGES = 24_000
"""Length of the training, in images seen, whatever the number of different ones."""
SEGMENTER_BATCH_SIZE = 16
SEGMENTER_PEAK_LR = 2e-3
"""Learning rate of Adam, from which a cosine leads to zero."""
MAX_SHIFT_PIXELS = 2
"""Augmentation: largest shift, pixels along each side."""


def shrink_mask(mask: Tensor, like: Tensor) -> Tensor:
    """`[B,H,W]` mask classes -> uint8 on the CPU, of the size of the images `like` `[B,C,h,w]`."""
    size = like.shape[2:]
    if mask.shape[1:] == size:
        return mask.to("cpu", torch.uint8)
    return F.interpolate(mask[:, None].float(), size, mode="nearest-exact")[:, 0].to("cpu", torch.uint8)


class Segmenter(ReferenceModel):
    """A U-Net, trained on images and their masks when it is made; four pixels of the mask are read at each of its places.

    Trained on the 4,000 real training digits of the project's test data, its reading of the 1,000 test digits has a mean IoU of 0.779 over
    11 classes; without the classes' weights, and after as many images in batches of 32, 0.666.

    Args:
        image: `[N,C,H,W]` uint8.
        mask: `[N,H,W]` uint8 mask classes; 255: unknown.
        classes: how many there are.
        making: how it comes about.
    """

    def __init__(self, image: Tensor, mask: Tensor, classes: int, making: TrainingSpec) -> None:
        super().__init__(lambda: UNet(image.shape[1], 4 * classes), making)
        random, weight = torch.Generator().manual_seed(making.seed), _weights(mask, classes).to(self.device)

        def loss() -> Tensor:
            rows = torch.randint(len(image), (SEGMENTER_BATCH_SIZE,), generator=random)
            shift = torch.randint(-MAX_SHIFT_PIXELS, MAX_SHIFT_PIXELS + 1, (2,), generator=random).tolist()
            x, y = (torch.roll(part[rows], shift, (-2, -1)) for part in (image, mask))
            return (
                F.cross_entropy(
                    self._logits(x), y.long().to(self.device), weight, ignore_index=IGNORE_INDEX, reduction="sum"
                )
                / y.numel()
            )

        self.fit(SEGMENTER_PEAK_LR, SEGMENTER_TRAIN_IMAGES, SEGMENTER_BATCH_SIZE, loss)

    def _logits(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        return F.pixel_shuffle(self.network(to_unit_range(image, self.device)), 2)[..., :height, :width]

    @torch.no_grad()
    def read(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` uint8 -> mask classes `[B,H,W]` uint8, on the CPU."""
        return self._logits(image).argmax(1).to("cpu", torch.uint8)


def _weights(mask: Tensor, classes: int) -> Tensor:
    """`[K]`: what a pixel of each class counts, 1 on average; rarer ones more, by the root, else the background is all that is learned."""
    count = torch.bincount(mask.flatten().long(), minlength=IGNORE_INDEX + 1)[:classes].float()
    weight = count.clamp_min(1).rsqrt()
    return weight * count.sum() / (weight * count).sum().clamp_min(1e-12)
