"""Averaged weights, counted in images: what is sampled from, evaluated and exported."""

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of all parameters of some networks, with a half-life in images.

    In the first images the half-life is a fifth of the images seen, so that the random start is soon forgotten (Karras et al. 2024, EDM2).
    """

    def __init__(self, networks: list[tuple[str, nn.Module]], half_life: float) -> None:
        named = [(f"{prefix}.{name}", p) for prefix, network in networks for name, p in network.named_parameters()]
        self.names = [name for name, _ in named]
        self.live = [p for _, p in named]
        self.average = [p.detach().clone(memory_format=torch.preserve_format) for p in self.live]
        self.half_life = half_life

    @torch.no_grad()
    def update(self, batch_size: int, images: int) -> None:
        """After a step over `batch_size` images that brought the images seen to `images`."""
        half_life = min(self.half_life, images / 5)
        decay = 0.5 ** (batch_size / half_life) if half_life else 0.0
        torch._foreach_lerp_(self.average, [p.detach() for p in self.live], 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Name -> averaged tensor on the CPU, copied."""
        return {name: t.to("cpu", copy=True).contiguous() for name, t in zip(self.names, self.average, strict=True)}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name, tensor in zip(self.names, self.average, strict=True):
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def copy_to_live(self) -> None:
        """Put the averaged weights into the networks themselves."""
        for live, average in zip(self.live, self.average, strict=True):
            live.copy_(average)
