"""The one generator: a latent and a condition become a canvas, that is an image together with its mask."""

import torch
from torch import Tensor, nn

from mtgen.networks.blocks import Conv2d, activate, initialise
from mtgen.networks.pyramid import BASE, Climb
from mtgen.schema import Canvas, Condition


class Generator(nn.Module):
    """One pyramid from 4x4 to the full resolution; the latent and the condition reach every block.

    Args:
        widths: channels of each level, from 4x4 upwards.
        blocks: residual blocks a level.
        latent: size of the latent z.
        condition: size of the shared representation space.
        channels: 1 (grey) or 3 (RGB).
        mask_classes: mask channels of the canvas; 0 for none.
        condition_scale: factor of the condition beside the latent.
    """

    def __init__(
        self, widths: list[int], blocks: int, latent: int, condition: int, channels: int, mask_classes: int, condition_scale: float
    ) -> None:
        super().__init__()
        self.latent, self.channels, self.mask_classes, self.condition_scale = latent, channels, mask_classes, condition_scale
        self.width = widths[0]
        style = latent + condition
        self.start = nn.Linear(style, widths[0] * BASE * BASE)
        self.climb = Climb(widths, blocks, style)
        self.draw = Conv2d(widths[-1], channels + mask_classes, 3, padding=1)
        initialise(self)
        self.draw.weight.data.mul_(0.1)  # start near a blank canvas, not with noise brighter than any image

    def forward(self, latent: Tensor, condition: Condition) -> Canvas:
        """`[B,Z]` standard normal and a condition -> a canvas; the mask is given as probabilities."""
        style = torch.cat([latent, self.condition_scale * condition.pooled], dim=1)
        x = self.start(style).unflatten(1, (self.width, BASE, BASE)).contiguous(memory_format=torch.channels_last)
        drawn = self.draw(activate(self.climb(x, style))).float()
        image, mask = drawn.split([self.channels, self.mask_classes], dim=1)
        return Canvas(image, mask.softmax(dim=1) if self.mask_classes else None)
