"""Pyramids of resolutions: upsampling in the generator, downsampling in the discriminator."""

from collections.abc import Collection
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.networks.attention import CrossAttention, SelfAttention
from mtgen.networks.blocks import Conv2d, Down, ResidualBlock, Up
from mtgen.schema import Condition

HeightWidth = tuple[int, int]
"""Height and width, pixels."""


def level_sizes(base: HeightWidth, levels: int) -> list[HeightWidth]:
    """Return height and width of each level, lowest resolution first."""
    return [(base[0] * 2**level, base[1] * 2**level) for level in range(levels)]


def levels_of_sides(sides: Collection[int], base: HeightWidth, levels: int) -> list[int]:
    """Numbers of the levels whose shorter side, in pixels, is one of `sides`."""
    return [number for number, size in enumerate(level_sizes(base, levels)) if min(size) in sides]


class ConditionInjection(nn.Module):
    """Adds spatial parts of the condition to a level of the generator; each part starts as zero.

    Args:
        width: channels of the level.
        tokens: dimensions of the tokens for cross-attention; 0: no cross-attention.
        layout: channels of the layout; 0: no layout.
        content: channels of the spatial latent that enters at this level; 0: none.
    """

    def __init__(self, width: int, tokens: int, layout: int, content: int) -> None:
        super().__init__()
        self.attend = CrossAttention(width, tokens) if tokens else None
        self.layout = Conv2d(layout, width, 1, bias=False, gain=0) if layout else None
        self.content = Conv2d(content, width, 3, padding=1, bias=False, gain=0) if content else None

    def forward(self, x: Tensor, condition: Condition, layout: Tensor | None) -> Tensor:
        """`[B,C,H,W]`, a condition, and its layout `[B,L,H,W]` at this level's resolution -> `[B,C,H,W]`."""
        if self.content is not None and condition.content is not None:
            x = x + self.content(condition.content)
        if self.layout is not None and layout is not None:
            x = x + self.layout(layout)
        if self.attend is not None and condition.tokens is not None and condition.present is not None:
            x = self.attend(x, condition.tokens, condition.present)
        return x


def _attention_by_level(widths: list[int], levels: Collection[int]) -> nn.ModuleDict:
    """Level -> its self-attention; a level's number is a string, as in names of parameters."""
    return nn.ModuleDict({str(level): SelfAttention(widths[level]) for level in levels})


class UpsamplePyramid(nn.Module):
    """From the lowest level to the full resolution, with `blocks` residual blocks per level, modulated by the style.

    Args:
        attentive: numbers of the levels that begin with self-attention.
    """

    def __init__(
        self,
        widths: list[int],
        blocks: int,
        style: int,
        injections: list[ConditionInjection],
        attentive: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(ResidualBlock(width, style) for _ in range(blocks)) for width in widths
        )
        self.ups = nn.ModuleList(Up(low, high) for low, high in zip(widths, widths[1:], strict=False))
        self.guides = nn.ModuleList(injections)
        self.attention = _attention_by_level(widths, attentive)

    def forward(self, x: Tensor, style: Tensor, condition: Condition) -> Tensor:
        """The lowest level `[B,widths[0],h,w]`, styles `[B,S]` and a condition -> `[B,widths[-1],H,W]`."""
        layouts = [condition.layout]
        for _ in self.ups:
            layouts.append(None if layouts[-1] is None else F.avg_pool2d(layouts[-1], 2))
        for number, level in enumerate(self.levels):
            if number:
                x = self.ups[number - 1](x)
            x = self.guides[number](x, condition, layouts[-1 - number])
            if str(number) in self.attention:
                x = self.attention[str(number)](x)
            for block in cast(nn.ModuleList, level):
                x = block(x, style)
        return x


class DownsamplePyramid(nn.Module):
    """From the full resolution to the lowest level; returns the features of all levels.

    Args:
        attentive: numbers of the levels that begin with self-attention.
        filtered: whether images are filtered before they are downsampled.
    """

    def __init__(self, widths: list[int], blocks: int, attentive: Collection[int] = (), filtered: bool = False) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.ModuleList(ResidualBlock(width) for _ in range(blocks)) for width in widths)
        self.downs = nn.ModuleList(Down(high, low, filtered) for low, high in zip(widths, widths[1:], strict=False))
        self.attention = _attention_by_level(widths, attentive)

    def forward(self, x: Tensor, added: list[Tensor] | None = None) -> list[Tensor]:
        """`[B,widths[-1],H,W]` -> features of each level, lowest resolution first.

        Args:
            added: what is added at the start of the lowest levels, lowest resolution first.
        """
        features = []
        for number in reversed(range(len(self.levels))):
            if added is not None and number < len(added):
                x = x + added[number]
            if str(number) in self.attention:
                x = self.attention[str(number)](x)
            for block in cast(nn.ModuleList, self.levels[number]):
                x = block(x)
            features.append(x)
            if number:
                x = self.downs[number - 1](x)
        return features[::-1]
