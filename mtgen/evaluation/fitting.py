"""How the independent readers are trained: Adam, and a learning rate that falls from its peak to zero by a cosine."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Seen = Callable[[int, int], None]
"""Called with images seen and their total."""


def fit(network: nn.Module, peak: float, steps: int, batch: int, loss: Callable[[], Tensor], progress: Seen) -> None:
    """Minimise `loss`, which draws a batch of its own each time it is called."""
    optimiser = torch.optim.Adam(network.parameters(), peak)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        with torch.enable_grad():
            loss().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        progress((step + 1) * batch, steps * batch)


def as_input(image: Tensor, device: torch.device | str) -> Tensor:
    """uint8 images -> float32 in [-1, 1] on `device`."""
    return image.to(device).float().div_(127.5).sub_(1)
