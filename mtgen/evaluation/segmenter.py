"""A small segmenter of fixed shape and fixed training: a yardstick for masks, not a part of any run."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtgen.evaluation.classifier import fit, warp
from mtgen.pictures import to_uint8
from mtgen.schema import IGNORE

SIDE = 64
"""Pixels: larger images are reduced to this, so that the yardstick's cost has a bound."""
IMAGES = 25_600
"""Length of the training, in images seen."""
WIDTHS = (16, 32, 48, 64)


def reduced(image: Tensor) -> Tensor:
    """Images `[B,C,H,W]` in [-1, 1] -> uint8 on the CPU, with sides of 64 pixels at most."""
    height, width = image.shape[2:]
    if max(height, width) > SIDE:
        scale = SIDE / max(height, width)
        shape = (max(1, round(height * scale)), max(1, round(width * scale)))
        image = F.interpolate(image, shape, mode="bilinear", antialias=True)
    return to_uint8(image)


def reduced_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """Masks `[B,H,W]` -> uint8 on the CPU, the nearest pixel, of the sides `shape`."""
    return F.interpolate(mask[:, None].float(), list(shape), mode="nearest-exact")[:, 0].to("cpu", torch.uint8)


class UNet(nn.Module):
    """Images -> mask logits of their size; each level half the side. Source: Ronneberger et al. 2015, at a hundredth of its size."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        ins = (channels, *WIDTHS)
        self.down = nn.ModuleList(self._block(a, b) for a, b in zip(ins, WIDTHS, strict=False))
        self.up = nn.ModuleList(self._block(b + a, a) for a, b in zip(WIDTHS, WIDTHS[1:], strict=False))
        self.out = nn.Conv2d(WIDTHS[0], classes, 1)

    @staticmethod
    def _block(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.GroupNorm(8, b), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` -> `[B,M,H,W]`; sides need not be even."""
        levels = []
        for number, block in enumerate(self.down):
            x = block(x if number == 0 else F.max_pool2d(x, 2, ceil_mode=True))
            levels.append(x)
        # what is where needs the whole image: its mean joins the lowest level
        x = levels.pop()
        x = x + x.mean((2, 3), keepdim=True)
        for block in reversed(self.up):
            skip = levels.pop()
            x = block(torch.cat([F.interpolate(x, skip.shape[2:], mode="nearest"), skip], 1))
        return self.out(x)


class Segmenter:
    """A U-Net of 0.1M parameters, trained on images with masks when it is made.

    Args:
        image: `[N,C,H,W]` uint8, see `reduced`.
        mask: `[N,H,W]` uint8 mask classes; 255 is not learned from.
        classes: how many mask classes there are.
        seed: of initialisation, order and augmentation; torch's global generator is left alone.
        progress: called with images seen and their total.
    """

    def __init__(
        self,
        image: Tensor,
        mask: Tensor,
        classes: int,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = UNet(image.shape[1], classes).to(device)
        random = torch.Generator().manual_seed(seed)

        def loss(rows: Tensor) -> Tensor:
            grid = warp(image[rows].shape, random).to(device)
            moved = F.grid_sample(self._input(image[rows]), grid, padding_mode="border", align_corners=False)
            labels = mask[rows, None].to(device).float()
            target = F.grid_sample(labels, grid, "nearest", padding_mode="border", align_corners=False)[:, 0].long()
            known = (target != IGNORE).sum().clamp_min(1)
            return F.cross_entropy(self.network(moved), target, ignore_index=IGNORE, reduction="sum") / known

        fit(self.network, loss, len(image), IMAGES, random, progress)

    def _input(self, image: Tensor) -> Tensor:
        return image.to(self.device).float().div_(127.5).sub_(1)

    @torch.no_grad()
    def read(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> mask classes `[B,H,W]` int64 of the same size, on the CPU."""
        logits = self.network(self._input(reduced(image)))
        if logits.shape[2:] != image.shape[2:]:
            logits = F.interpolate(logits, image.shape[2:], mode="bilinear")
        return logits.argmax(1).cpu()
