"""Augmentation in front of the discriminator: one affine map a sample, for image and mask alike, real and generated alike.

Differentiable and the same on any number of workers: its parameters are functions of (seed, position). Because only a share
of the samples is changed, the generator cannot learn to draw the changes (Karras et al. 2020, "Training GANs with limited data").
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mtgen import counter
from mtgen.config import Augment
from mtgen.schema import Canvas


def changed(settings: Augment, seed: int, purpose: str, position: Tensor) -> Tensor:
    """`[B]` positions -> `[B]` bool: which samples are changed."""
    return counter.uniform(seed, f"augment {purpose}", position, 1)[:, 0] < settings.probability


class Warp:
    """The affine maps of one micro-batch.

    Args:
        settings: largest shift, rotation and change of size.
        position: `[B]` positions, on the CPU.
        purpose: names the draw, so that real and generated samples are changed independently.
        which: the draw that decides which samples are changed.
        device: of the tensors that will be warped.
    """

    def __init__(self, settings: Augment, seed: int, position: Tensor, purpose: str, which: str, device: torch.device) -> None:
        self.changed = changed(settings, seed, which, position)
        rows = self.changed.nonzero().flatten()
        draw = 2 * counter.uniform(seed, f"warp {purpose}", position[rows], 4) - 1
        angle, size = draw[:, 0] * math.radians(settings.rotate), 1 + draw[:, 1] * settings.scale
        shift = 2 * settings.shift * draw[:, 2:]
        cos, sin = size * angle.cos(), size * angle.sin()
        theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
        self.rows, self.theta = rows.to(device), theta.to(device)

    def __call__(self, x: Tensor, mode: str = "bilinear") -> Tensor:
        """`[B,C,H,W]` -> the same with its changed samples warped; beyond the border the border goes on."""
        if not len(self.rows):
            return x
        part = x[self.rows]
        with torch.autocast(x.device.type, enabled=False):
            grid = F.affine_grid(self.theta, list(part.shape), align_corners=False)
            warped = F.grid_sample(part.float(), grid, mode=mode, padding_mode="border", align_corners=False)
        return x.index_copy(0, self.rows, warped.to(x.dtype))

    def mask(self, mask: Tensor) -> Tensor:
        """`[B,H,W]` class numbers -> the same, warped to the nearest pixel."""
        return self(mask[:, None].float(), mode="nearest")[:, 0].to(mask.dtype)

    def canvas(self, canvas: Canvas) -> Canvas:
        """Image and mask warped alike."""
        return Canvas(self(canvas.image), None if canvas.mask is None else self(canvas.mask), canvas.shown)
