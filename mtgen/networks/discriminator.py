"""The one discriminator: a trunk that every task reads, a U-Net decoder for dense ones, and one head a task."""

import torch
from torch import Tensor, nn

from mtgen.networks.blocks import Conv2d, Up, activate, initialise
from mtgen.networks.pyramid import BASE, Descent
from mtgen.schema import Canvas


class Decoder(nn.Module):
    """U-Net decoder over the trunk's levels: `[B,*,4,4] .. [B,*,R,R]` -> `[B,channels,R,R]`. Source: Ronneberger et al. 2015."""

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(Conv2d(width, channels, 1) for width in widths)
        self.ups = nn.ModuleList(Up(channels, channels) for _ in widths[1:])
        self.mixes = nn.ModuleList(Conv2d(channels, channels, 3, padding=1) for _ in widths)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.mixes[0](activate(self.laterals[0](features[0])))
        for up, lateral, mix, skip in zip(self.ups, list(self.laterals)[1:], list(self.mixes)[1:], features[1:], strict=True):
            x = mix(activate(up(activate(x)) + lateral(skip)))
        return x


class Discriminator(nn.Module):
    """Trunk, decoder and the tasks' heads.

    The trunk sees an image, with its mask where `canvas.shown` says so: the mask's input layer adds nothing for the others,
    so that one network reads images alone and judges images together with their masks.

    Args:
        widths: channels of each level, from 4x4 upwards.
        blocks: residual blocks a level.
        decoder: channels of the U-Net decoder; 0 where no task needs one.
        channels: 1 (grey) or 3 (RGB).
        mask_classes: mask channels of the canvas; 0 for none.
        heads: task -> its head.
    """

    def __init__(self, widths: list[int], blocks: int, decoder: int, channels: int, mask_classes: int, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.see_image = Conv2d(channels, widths[-1], 3, padding=1)
        self.see_mask = Conv2d(mask_classes, widths[-1], 1, bias=False) if mask_classes else None
        self.descent = Descent(widths, blocks)
        self.decoder = Decoder(widths, decoder) if decoder else None
        self.heads = nn.ModuleDict(heads)
        initialise(self)

    def trunk(self, canvas: Canvas) -> list[Tensor]:
        """A canvas of `[B,..,R,R]` -> features of each level, the lowest (4x4) first."""
        x = self.see_image(canvas.image.contiguous(memory_format=torch.channels_last))
        if self.see_mask is not None and canvas.mask is not None and canvas.shown is not None:
            mask = canvas.mask * canvas.shown[:, None, None, None]
            x = x + self.see_mask(mask.contiguous(memory_format=torch.channels_last))
        return self.descent(x)

    def dense(self, features: list[Tensor]) -> Tensor:
        """Features of each level -> the decoder's `[B,D,R,R]`."""
        if self.decoder is None:
            raise ValueError("this discriminator was built without a decoder: no task asked for one")
        return self.decoder(features)

    @staticmethod
    def summary(features: list[Tensor]) -> Tensor:
        """The lowest level as a vector: `[B,widths[0]*16]`."""
        return activate(features[0]).flatten(1)


def summary_size(widths: list[int]) -> int:
    """Length of `Discriminator.summary`."""
    return widths[0] * BASE * BASE
