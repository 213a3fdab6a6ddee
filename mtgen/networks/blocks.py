"""The layers that generator, discriminator and encoders share, and the one initialization rule."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Negative slope of every leaky ReLU."""


def activate(x: Tensor) -> Tensor:
    """The one non-linearity of all networks: leaky ReLU."""
    return F.leaky_relu(x, SLOPE)


class Conv2d(nn.Module):
    """A convolution whose weight lies in memory as channels-last convolutions read it: `[O,k,k,I]`.

    A fifth faster on a CPU than a weight of `[O,I,k,k]`, which is reordered in every call; and, unlike a parameter in torch's channels-last
    format, it is contiguous, which DeepSpeed needs to broadcast and to partition it.

    Args:
        gain: factor of the weight at the start: below 1 where first answers should be cautious, 0 where nothing should be added.
    """

    def __init__(
        self, inputs: int, outputs: int, side: int, padding: int = 0, bias: bool = True, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.padding = padding
        self.gain = gain
        self.weight = nn.Parameter(torch.empty(outputs, side, side, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @property
    def kernel(self) -> Tensor:
        """The weight as torch's functions take it: `[O,I,k,k]`, a view."""
        return self.weight.permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,I,H,W]` -> `[B,O,H',W']`."""
        return F.conv2d(x, self.kernel, self.bias, padding=self.padding)


class ResidualBlock(nn.Module):
    """Two dense 3x3 convolutions without normalization; the second starts at zero, so that the block starts as the identity.

    With `style` channels, a style vector scales and shifts the hidden layer: `h * (1 + a(style)) + b(style)`, so that the
    latent reaches every block.
    Source: Zhang et al. 2019 (Fixup); Huang et al. 2024 (R3GAN), with dense in place of grouped convolutions: in equal time on a CPU
    they learn more (docs/performance.md).
    """

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.first = Conv2d(channels, channels, 3, padding=1)
        self.second = Conv2d(channels, channels, 3, padding=1)
        self.style = nn.Linear(style, 2 * channels) if style else None

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """`[B,C,H,W]` (and `[B,S]`) -> `[B,C,H,W]`."""
        hidden = self.first(activate(x))
        if self.style is not None and style is not None:
            scale, shift = self.style(style)[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return x + self.second(activate(hidden))


class Up(nn.Module):
    """1x1 convolution, then twice the side by bilinear interpolation: `[B,I,H,W]` -> `[B,O,2H,2W]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,I,h,w]` -> `[B,O,2h,2w]`."""
        return F.interpolate(self.project(x), scale_factor=2, mode="bilinear", align_corners=False)


class Down(nn.Module):
    """Half the side by averaging, then a 1x1 convolution: `[B,I,H,W]` -> `[B,O,H/2,W/2]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,I,2h,2w]` -> `[B,O,h,w]`."""
        return self.project(F.avg_pool2d(x, 2))


def initialize(network: nn.Module) -> None:
    """The one rule: He's normal for every layer, residual branches after Fixup, biases 0.

    With L residual blocks of two convolutions, the first of each is scaled by L^(-1/2) and the second is 0.
    Style layers start small, so that a block starts almost unmodulated.
    """
    depth = max(1, sum(isinstance(m, ResidualBlock) for m in network.modules()))
    for module in network.modules():
        if isinstance(module, Conv2d | nn.Conv1d | nn.Linear):
            nn.init.kaiming_normal_(module.kernel if isinstance(module, Conv2d) else module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    for module in network.modules():
        if isinstance(module, Conv2d) and module.gain != 1:
            module.weight.data.mul_(module.gain)
        if isinstance(module, ResidualBlock):
            module.first.weight.data.mul_(1 / math.sqrt(depth))
            module.second.weight.data.zero_()
            if module.style is not None:
                module.style.weight.data.mul_(0.25)
