"""The one generator: a latent and a condition become a canvas, that is an image together with its mask and boxes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.networks.blocks import Conv2d, activate, initialize
from mtgen.networks.pyramid import ConditionInjection, HeightWidth, UpsamplePyramid, level_sizes
from mtgen.schema import Canvas, Condition

INITIAL_BOX_LOGIT = -4.0
"""Logit of the box maps that a generator starts from."""


@dataclass(frozen=True)
class CanvasSpec:
    """What is on a canvas; a task adds to it.

    Attributes:
        channels: 1 (gray) or 3 (RGB).
        mask_classes: channels of the mask; 0 for none.
        box_maps: channels of the maps that say where boxes are; 0 for none.
        stride: pixels of a cell of these maps.
    """

    channels: int
    mask_classes: int = 0
    box_maps: int = 0
    stride: int = 1


@dataclass(frozen=True)
class ConditionSpec:
    """What conditions bring to the levels of the generator, beside the pooled vector.

    Attributes:
        tokens: dimensions of the tokens; 0: none are attended to.
        attention: largest side of a level that attends to them.
        layout: channels of the layout; 0: none.
        content: channels of the spatial latent of translation; 0: none.
        content_level: the level at which it enters, from the lowest.
    """

    tokens: int = 0
    attention: int = 16
    layout: int = 0
    content: int = 0
    content_level: int = 0


class Generator(nn.Module):
    """One pyramid from the lowest level to the full resolution; the latent and the condition reach every block.

    Args:
        widths: channels of each level, from the lowest upwards.
        blocks: residual blocks a level.
        base: height and width of the lowest level.
        latent: size of the latent z.
        condition: size of the shared representation space.
        canvas_spec: what is on the canvas.
        guidance: what conditions bring beside the pooled vector.
        condition_scale: factor of the condition beside the latent.
    """

    def __init__(
        self,
        widths: list[int],
        blocks: int,
        base: HeightWidth,
        latent: int,
        condition: int,
        drawing: CanvasSpec,
        guidance: ConditionSpec,
        condition_scale: float,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.base = base
        self.canvas_spec = drawing
        self.condition_scale = condition_scale
        self.width = widths[0]
        style = latent + condition
        self.start = nn.Linear(style, widths[0] * base[0] * base[1])
        guides = [
            ConditionInjection(
                width,
                guidance.tokens if max(side) <= guidance.attention else 0,
                guidance.layout,
                guidance.content if level == guidance.content_level else 0,
            )
            for level, (width, side) in enumerate(zip(widths, level_sizes(base, len(widths)), strict=True))
        ]
        self.climb = UpsamplePyramid(widths, blocks, style, guides)
        # Starts near a blank canvas, not with noise brighter than any image, and with centers nowhere.
        self.draw = Conv2d(widths[-1], drawing.channels + drawing.mask_classes, 3, padding=1, gain=0.1)
        self.draw_boxes = Conv2d(widths[-1], drawing.box_maps, 3, padding=1, gain=0.1) if drawing.box_maps else None
        initialize(self)
        for guide in guides:
            if guide.attend is not None:
                guide.attend.attention.out.weight.data.zero_()

    def forward(self, latent: Tensor, condition: Condition) -> Canvas:
        """`[B,Z]` standard normal and a condition -> a canvas; mask, centers and sizes are given as probabilities and shares, 0 to 1."""
        style = torch.cat([latent, self.condition_scale * condition.pooled], dim=1)
        x = self.start(style).unflatten(1, (self.width, *self.base)).contiguous(memory_format=torch.channels_last)
        x = activate(self.climb(x, style, condition))
        image, mask = self.draw(x).float().split([self.canvas_spec.channels, self.canvas_spec.mask_classes], dim=1)
        boxes = None
        if self.draw_boxes is not None:
            boxes = (self.draw_boxes(F.avg_pool2d(x, self.canvas_spec.stride)).float() + INITIAL_BOX_LOGIT).sigmoid()
        return Canvas(image, mask.softmax(dim=1) if self.canvas_spec.mask_classes else None, boxes=boxes)
