"""One description of a pyramid of resolutions, which the generator climbs and the discriminator descends."""

from typing import cast

from torch import Tensor, nn

from mtgen.networks.blocks import Down, ResidualBlock, Up

BASE = 4
"""Side of the lowest level, pixels."""


def sides(widths: list[int]) -> list[int]:
    """Side of each level, pixels, from the lowest (4) upwards."""
    return [BASE * 2**level for level in range(len(widths))]


class Climb(nn.Module):
    """From 4x4 to the full resolution: `blocks` residual blocks a level, modulated by the style."""

    def __init__(self, widths: list[int], blocks: int, style: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.ModuleList(ResidualBlock(width, style) for _ in range(blocks)) for width in widths)
        self.ups = nn.ModuleList(Up(low, high) for low, high in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """`[B,widths[0],4,4]`, `[B,S]` -> `[B,widths[-1],R,R]`."""
        for number, level in enumerate(self.levels):
            if number:
                x = self.ups[number - 1](x)
            for block in cast(nn.ModuleList, level):
                x = block(x, style)
        return x


class Descent(nn.Module):
    """From the full resolution to 4x4; keeps what every level ends with."""

    def __init__(self, widths: list[int], blocks: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.ModuleList(ResidualBlock(width) for _ in range(blocks)) for width in widths)
        self.downs = nn.ModuleList(Down(high, low) for low, high in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> list[Tensor]:
        """`[B,widths[-1],R,R]` -> features of each level, the lowest (4x4) first."""
        features = []
        for number in reversed(range(len(self.levels))):
            for block in cast(nn.ModuleList, self.levels[number]):
                x = block(x)
            features.append(x)
            if number:
                x = self.downs[number - 1](x)
        return features[::-1]
