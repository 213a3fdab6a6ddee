"""The network of the reference models with dense predictions."""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 128)
"""Channels of the levels. The first has half the image's resolution, each further one half of the level before."""


def _layer(channels: int, width: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, width), nn.ReLU())


class UNet(nn.Module):
    """Images `[B,C,H,W]` -> `[B,out,H/2,W/2]`, sides rounded up.

    Source: Ronneberger et al. 2015, with sums instead of concatenations and no level at the image's own resolution:
    most of the computation is where a convolution is cheap and has a large receptive field.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        steps = list(zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
        self.stem = _layer(channels, WIDTHS[0], 2, 5)
        self.down = nn.ModuleList(_layer(a, b, 2) for a, b in steps)
        self.deepest = nn.Sequential(_layer(WIDTHS[-1], WIDTHS[-1]), _layer(WIDTHS[-1], WIDTHS[-1]))
        self.across = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in steps)
        self.up = nn.ModuleList(_layer(a, a) for a, _ in steps)
        self.out = nn.Conv2d(WIDTHS[0], out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` -> `[B,out,H/2,W/2]`."""
        levels = [self.stem(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = self.deepest(levels.pop())
        for level, across, up in zip(reversed(levels), reversed(self.across), reversed(self.up), strict=True):
            x = up(level + F.interpolate(across(x), level.shape[2:]))
        return self.out(x)
