"""The generator: from a latent and a condition to a canvas, an image together with its mask and boxes."""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.networks.attention import start_as_identity
from mtgen.networks.blocks import Conv2d, activate, initialize
from mtgen.networks.pyramid import ConditionInjection, HeightWidth, UpsamplePyramid, level_sizes
from mtgen.schema import Canvas, Condition

INITIAL_BOX_LOGIT = -4.0
"""Initial logit of generated box maps."""


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast is off, if it is on."""
    kind = device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


@dataclass(frozen=True)
class CanvasSpec:
    """What is on a canvas. Tasks add to it.

    Attributes:
        channels: 1 (gray) or 3 (RGB).
        mask_classes: channels of the mask; 0: no mask.
        box_maps: channels of the box maps (`mtgen.networks.center_maps`); 0: no boxes.
        stride: side of a cell of the box maps, pixels.
    """

    channels: int
    mask_classes: int = 0
    box_maps: int = 0
    stride: int = 1


@dataclass(frozen=True)
class ConditionSpec:
    """What conditions provide to the levels of the generator, besides the pooled vector.

    Attributes:
        tokens: dimensions of the tokens for cross-attention; 0: no tokens.
        attention: largest side of a level with cross-attention, pixels.
        layout: channels of the layout; 0: no layout.
        content: channels of the spatial latent of translation; 0: none.
        content_level: number of the level where the spatial latent enters, lowest resolution first.
    """

    tokens: int = 0
    attention: int = 16
    layout: int = 0
    content: int = 0
    content_level: int = 0


class Generator(nn.Module):
    """A pyramid from the lowest level to the full resolution; latent and condition modulate every block.

    Args:
        widths: channels of each level, lowest resolution first.
        blocks: residual blocks per level.
        base: height and width of the lowest level.
        latent: dimensions of the latent z.
        condition: dimensions of the shared representation space.
        canvas_spec: what is on the canvas.
        condition_spec: what conditions provide besides the pooled vector.
        condition_scale: factor of the condition relative to the latent.
        attentive: numbers of the levels with self-attention, lowest resolution first.
    """

    def __init__(
        self,
        widths: list[int],
        blocks: int,
        base: HeightWidth,
        latent: int,
        condition: int,
        canvas_spec: CanvasSpec,
        condition_spec: ConditionSpec,
        condition_scale: float,
        attentive: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.latent = latent
        self.base = base
        self.canvas_spec = canvas_spec
        self.condition_scale = condition_scale
        self.width = widths[0]
        style = latent + condition
        self.start = nn.Linear(style, widths[0] * base[0] * base[1])
        injections = [
            ConditionInjection(
                width,
                condition_spec.tokens if max(side) <= condition_spec.attention else 0,
                condition_spec.layout,
                condition_spec.content if level == condition_spec.content_level else 0,
            )
            for level, (width, side) in enumerate(zip(widths, level_sizes(base, len(widths)), strict=True))
        ]
        self.climb = UpsamplePyramid(widths, blocks, style, injections, attentive)
        # The small gain starts near a blank canvas without boxes, where a gain of 1 would start brighter than any
        # image.
        outputs, boxes = canvas_spec.channels + canvas_spec.mask_classes, canvas_spec.box_maps
        self.draw = Conv2d(widths[-1], outputs, 3, padding=1, gain=0.1)
        self.draw_boxes = Conv2d(widths[-1], boxes, 3, padding=1, gain=0.1) if boxes else None
        initialize(self)
        start_as_identity(self)

    def forward(self, latent: Tensor, condition: Condition) -> Canvas:
        """Latents `[B,Z]`, standard normal, and a condition -> a canvas, with mask and box maps in 0 to 1."""
        style = torch.cat([latent, self.condition_scale * condition.pooled], dim=1)
        x = self.start(style).unflatten(1, (self.width, *self.base)).contiguous(memory_format=torch.channels_last)
        x = activate(self.climb(x, style, condition))
        boxes = None
        with _without_autocast(x.device):  # 8 bits of mantissa are fewer than a pixel has
            drawn = self.draw(x.float())
            if self.draw_boxes is not None:
                boxes = self.draw_boxes(F.avg_pool2d(x, self.canvas_spec.stride).float()) + INITIAL_BOX_LOGIT
        image, mask = drawn.split([self.canvas_spec.channels, self.canvas_spec.mask_classes], dim=1)
        return Canvas.of_logits(image, mask if self.canvas_spec.mask_classes else None, boxes)
