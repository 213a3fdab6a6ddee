"""The discriminator: a trunk shared by all tasks, a U-Net decoder for dense tasks, and one head per task."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.networks.attention import start_as_identity
from mtgen.networks.blocks import Conv2d, Up, activate, initialize
from mtgen.networks.generator import CanvasSpec
from mtgen.networks.pyramid import DownsamplePyramid
from mtgen.schema import Canvas


class UNetDecoder(nn.Module):
    """U-Net decoder over the trunk's levels. Source: Ronneberger et al. 2015."""

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(Conv2d(width, channels, 1) for width in widths)
        self.ups = nn.ModuleList(Up(channels, channels) for _ in widths[1:])
        self.mixes = nn.ModuleList(Conv2d(channels, channels, 3, padding=1) for _ in widths)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The trunk's levels, lowest resolution first -> `[B,channels,H,W]` at the images' resolution."""
        x = self.mixes[0](activate(self.laterals[0](features[0])))
        for up, lateral, mix, skip in zip(
            self.ups, list(self.laterals)[1:], list(self.mixes)[1:], features[1:], strict=True
        ):
            x = mix(activate(up(activate(x)) + lateral(skip)))
        return x


class Discriminator(nn.Module):
    """Trunk, decoder and the tasks' heads.

    The trunk sees an image, together with its mask and boxes if the canvas shows them: the input layers of hidden
    labels add nothing. So one network predicts from images alone, and judges images together with their labels.

    Args:
        widths: channels of each level, lowest resolution first.
        blocks: residual blocks per level.
        decoder: channels of the U-Net decoder; 0 if no task needs one.
        canvas_spec: what is on a canvas.
        heads: task -> its head.
        attentive: numbers of the levels with self-attention, lowest resolution first.
        filtered: whether features are filtered before they are downsampled.
    """

    def __init__(
        self,
        widths: list[int],
        blocks: int,
        decoder: int,
        canvas_spec: CanvasSpec,
        heads: dict[str, nn.Module],
        attentive: Collection[int] = (),
        filtered: bool = False,
    ) -> None:
        super().__init__()
        self.see_image = Conv2d(canvas_spec.channels, widths[-1], 3, padding=1)
        masks, boxes = canvas_spec.mask_classes, canvas_spec.box_maps
        self.see_mask = Conv2d(masks, widths[-1], 1, bias=False) if masks else None
        self.see_boxes = Conv2d(boxes, widths[-1], 1, bias=False) if boxes else None
        self.descent = DownsamplePyramid(widths, blocks, attentive, filtered)
        self.decoder = UNetDecoder(widths, decoder) if decoder else None
        self.heads = nn.ModuleDict(heads)
        initialize(self)
        start_as_identity(self)

    def trunk(self, canvas: Canvas) -> list[Tensor]:
        """A canvas of `[B,..,H,W]` -> features of each level, lowest resolution first."""
        x = self.see_image(canvas.image.contiguous(memory_format=torch.channels_last))
        if self.see_mask is not None and canvas.mask is not None and canvas.shown is not None:
            mask = canvas.mask * canvas.shown[:, None, None, None]
            x = x + self.see_mask(mask.contiguous(memory_format=torch.channels_last))
        if self.see_boxes is not None and canvas.boxes is not None and canvas.boxed is not None:
            boxes = self.see_boxes(
                (canvas.boxes * canvas.boxed[:, None, None, None]).contiguous(memory_format=torch.channels_last)
            )
            x = x + (boxes if boxes.shape == x.shape else F.interpolate(boxes, size=x.shape[2:]))
        return self.descent(x)

    def dense(self, features: list[Tensor]) -> Tensor:
        """Features of all levels -> the decoder's `[B,D,H,W]`."""
        if self.decoder is None:
            raise ValueError("this discriminator was built without a decoder: none of its tasks is dense")
        return self.decoder(features)

    @staticmethod
    def summary(features: list[Tensor]) -> Tensor:
        """The lowest level as a vector: `[B,widths[0]*h*w]`."""
        return activate(features[0]).flatten(1)
