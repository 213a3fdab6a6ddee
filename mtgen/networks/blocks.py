"""Layers of generator, discriminator and encoders, and their initialization."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Negative slope of every leaky ReLU."""


def activate(x: Tensor) -> Tensor:
    """Apply leaky ReLU, the activation of all networks."""
    return F.leaky_relu(x, SLOPE)


class Conv2d(nn.Module):
    """A convolution whose weight is stored in the order of channels-last convolutions: `[O,k,k,I]`.

    On a CPU it is a fifth faster than with a weight of `[O,I,k,k]`, which is reordered in every call. Unlike a
    parameter in torch's channels-last format it is contiguous, as DeepSpeed requires to broadcast and partition it.

    Args:
        side: side of the kernel.
        gain: factor of the initial weight: below 1 for small initial outputs, 0 for none.
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
        """`[O,I,k,k]`: a view of the weight in torch's order."""
        return self.weight.permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,I,H,W]` -> `[B,O,H',W']`."""
        return F.conv2d(x, self.kernel, self.bias, padding=self.padding)


class ResidualBlock(nn.Module):
    """Two dense 3x3 convolutions without normalization; the second starts at zero, so the block starts as the identity.

    A style vector of `style` channels scales and shifts the hidden layer, `h * (1 + a(style)) + b(style)`: the latent
    reaches every block. Source: Zhang et al. 2019 (Fixup); Huang et al. 2024 (R3GAN), with dense instead of grouped
    convolutions: in equal time on a CPU they learn more (docs/performance.md).
    """

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.first = Conv2d(channels, channels, 3, padding=1)
        self.second = Conv2d(channels, channels, 3, padding=1)
        self.style = nn.Linear(style, 2 * channels) if style else None

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """`[B,C,H,W]`, and a style `[B,S]` -> `[B,C,H,W]`."""
        hidden = self.first(activate(x))
        if self.style is not None and style is not None:
            scale, shift = self.style(style)[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return x + self.second(activate(hidden))


class Up(nn.Module):
    """A 1x1 convolution, then bilinear upsampling by 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,I,h,w]` -> `[B,O,2h,2w]`."""
        return F.interpolate(self.project(x), scale_factor=2, mode="bilinear", align_corners=False)


class Down(nn.Module):
    """Average pooling by 2, then a 1x1 convolution.

    Args:
        filtered: blur with [1,2,1] before pooling, together [1,3,3,1], against aliasing. Source: Zhang 2019.
    """

    def __init__(self, inputs: int, outputs: int, filtered: bool = False) -> None:
        super().__init__()
        self.filtered = filtered
        self.project = Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,I,2h,2w]` -> `[B,O,h,w]`."""
        return self.project(F.avg_pool2d(blur(x) if self.filtered else x, 2))


def blur(x: Tensor) -> Tensor:
    """`[B,C,H,W]` -> `[B,C,H,W]`, filtered with [1,2,1] / 4 in both directions; edges are continued."""
    means = F.avg_pool2d(x, 2, stride=1, padding=1, count_include_pad=False)
    return F.avg_pool2d(means, 2, stride=1)


def initialize(network: nn.Module) -> None:
    """Initialize all layers: He's normal distribution for weights, Fixup for residual branches, 0 for biases.

    With L residual blocks of two convolutions, the first of each is scaled by L^(-1/2) and the second is 0.
    Style layers start small, so a block starts almost without modulation.
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
