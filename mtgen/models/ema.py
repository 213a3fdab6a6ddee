"""Averaged weights, which are used for sampling, evaluation and export."""

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of all parameters of several networks, with a half-life in images.

    The half-life is at most a fifth of the images seen, so that the random initialization is soon forgotten (Karras et
    al. 2024, EDM2).

    Args:
        networks: (prefix of the parameter names, network).
        half_life: number of images; 0: no averaging.
    """

    def __init__(self, networks: list[tuple[str, nn.Module]], half_life: float) -> None:
        named = [(f"{prefix}.{name}", p) for prefix, network in networks for name, p in network.named_parameters()]
        self.names = [name for name, _ in named]
        self.live = [p for _, p in named]
        self.average = [p.detach().clone(memory_format=torch.preserve_format) for p in self.live]
        self.half_life = half_life

    @torch.no_grad()
    def update(self, batch_size: int, images: int) -> None:
        """Update after a step over `batch_size` images; `images` is the number of images seen, this step included."""
        half_life = min(self.half_life, images / 5)
        decay = 0.5 ** (batch_size / half_life) if half_life else 0.0
        torch._foreach_lerp_(self.average, [p.detach() for p in self.live], 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Name -> copy of the averaged tensor, on the CPU."""
        return {name: t.to("cpu", copy=True).contiguous() for name, t in zip(self.names, self.average, strict=True)}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load tensors that `state` returned."""
        for name, tensor in zip(self.names, self.average, strict=True):
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def copy_to_live(self) -> None:
        """Copy the averaged weights to the networks."""
        for live, average in zip(self.live, self.average, strict=True):
            live.copy_(average)
