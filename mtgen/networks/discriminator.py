"""The discriminator: a trunk shared by all tasks, a U-Net decoder for dense tasks, and one head per task."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.networks.attention import start_as_identity
from mtgen.networks.backbone import Backbone
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


class Trunk(nn.Module):
    """From a canvas to features of all levels.

    It sees an image, together with its mask and boxes if the canvas shows them: the input layers of hidden labels add
    nothing. So one network predicts from images alone, and judges images together with their labels.

    Args:
        widths: channels of each level, lowest resolution first.
        blocks: residual blocks per level.
        canvas_spec: what is on a canvas.
        attentive: numbers of the levels with self-attention, lowest resolution first.
        filtered: whether features are filtered before they are downsampled.
    """

    def __init__(
        self,
        widths: list[int],
        blocks: int,
        canvas_spec: CanvasSpec,
        attentive: Collection[int] = (),
        filtered: bool = False,
    ) -> None:
        super().__init__()
        self.see_image = Conv2d(canvas_spec.channels, widths[-1], 3, padding=1)
        masks, boxes = canvas_spec.mask_classes, canvas_spec.box_maps
        self.see_mask = Conv2d(masks, widths[-1], 1, bias=False) if masks else None
        self.see_boxes = Conv2d(boxes, widths[-1], 1, bias=False) if boxes else None
        self.descent = DownsamplePyramid(widths, blocks, attentive, filtered)
        self.see_pretrained: nn.ModuleList | None = None

    def read_pretrained(self, channels: list[int], widths: list[int]) -> None:
        """Add the layers that read pretrained features of these channels, lowest resolution first."""
        self.see_pretrained = nn.ModuleList(
            Conv2d(inputs, width, 1) for inputs, width in zip(channels, widths, strict=False)
        )
        initialize(self.see_pretrained)

    def levels(self, canvas: Canvas, pretrained: list[Tensor] | None) -> list[Tensor]:
        """A canvas of `[B,..,H,W]`, and pretrained features -> features of each level, lowest resolution first."""
        x = self.see_image(canvas.image.contiguous(memory_format=torch.channels_last))
        if self.see_mask is not None and canvas.mask is not None and canvas.shown is not None:
            mask = canvas.mask * canvas.shown[:, None, None, None]
            x = x + self.see_mask(mask.contiguous(memory_format=torch.channels_last))
        if self.see_boxes is not None and canvas.boxes is not None and canvas.boxed is not None:
            boxes = self.see_boxes(
                (canvas.boxes * canvas.boxed[:, None, None, None]).contiguous(memory_format=torch.channels_last)
            )
            x = x + (boxes if boxes.shape == x.shape else F.interpolate(boxes, size=x.shape[2:]))
        if self.see_pretrained is None or pretrained is None:
            return self.descent(x)
        return self.descent(x, [see(features) for see, features in zip(self.see_pretrained, pretrained, strict=True)])


class Discriminator(Trunk):
    """Trunk, decoder and the tasks' heads.

    Args:
        widths, blocks, canvas_spec, attentive, filtered: see `Trunk`.
        decoder: channels of the U-Net decoder; 0 if no task needs one.
        heads: task -> its head.
        backbone: pretrained features that the trunk reads; `None`: none.
        separate: judge canvases with a trunk of its own, so that the predicting tasks have this one for themselves.
        pretrained_judge: whether a separate trunk reads the pretrained features too.

    Attributes:
        game: the trunk that judges canvases; `None`: this one.
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
        backbone: Backbone | None = None,
        separate: bool = False,
        pretrained_judge: bool = True,
    ) -> None:
        own = CanvasSpec(canvas_spec.channels) if separate else canvas_spec
        super().__init__(widths, blocks, own, attentive, filtered)
        self.decoder = UNetDecoder(widths, decoder) if decoder else None
        self.heads = nn.ModuleDict(heads)
        initialize(self)
        self.game: Trunk | None = None
        if separate:
            self.game = Trunk(widths, blocks, canvas_spec, attentive, filtered)
            initialize(self.game)
        start_as_identity(self)
        self.backbone = backbone
        if backbone is not None:
            self.read_pretrained(backbone.channels, widths)
            if self.game is not None and pretrained_judge:
                self.game.read_pretrained(backbone.channels, widths)

    @property
    def judge(self) -> Trunk:
        """The trunk that judges canvases."""
        return self if self.game is None else self.game

    def pretrained(self, image: Tensor) -> list[Tensor] | None:
        """Images `[B,C,H,W]` -> pretrained features for the lowest levels; `None` without a backbone."""
        return None if self.backbone is None else self.backbone(image)

    def trunk(self, canvas: Canvas, pretrained: list[Tensor] | None = None) -> list[Tensor]:
        """A canvas of `[B,..,H,W]` -> features of each level that heads predict from, lowest resolution first.

        Args:
            pretrained: of the canvas' images; default: computed here.
        """
        return self.levels(canvas, self.pretrained(canvas.image) if pretrained is None else pretrained)

    def judged(self, canvas: Canvas, pretrained: list[Tensor] | None = None) -> Tensor:
        """A canvas of `[B,..,H,W]` -> `[B,C,h,w]`: the lowest level that it is judged by; arguments as of `trunk`."""
        if self.judge.see_pretrained is not None and pretrained is None:
            pretrained = self.pretrained(canvas.image)
        return self.judge.levels(canvas, pretrained)[0]

    def dense(self, features: list[Tensor]) -> Tensor:
        """Features of all levels -> the decoder's `[B,D,H,W]`."""
        if self.decoder is None:
            raise ValueError("this discriminator was built without a decoder: none of its tasks is dense")
        return self.decoder(features)

    @staticmethod
    def summary(features: list[Tensor]) -> Tensor:
        """The lowest level as a vector: `[B,widths[0]*h*w]`."""
        return activate(features[0]).flatten(1)
