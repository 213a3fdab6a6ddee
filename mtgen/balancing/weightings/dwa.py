"""Dynamic weight average: more weight for tasks whose losses fall slowly."""

import torch
from torch import Tensor

from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("dwa")
class DWA(Weighting):
    """Softmax of r / T, with r each task's mean loss relative to the window before.

    Source: Liu, Johns and Davison 2019, eq. 7.

    Args:
        temperature: T; large values give equal weights.
        window: images over which losses are averaged (an epoch in the paper).
    """

    reads_losses = True
    on_device = True

    def __init__(self, temperature: float = 2.0, window: float = 10_000) -> None:
        super().__init__()
        if temperature <= 0 or window <= 0:
            raise ValueError(f"temperature={temperature}, window={window}: must be above 0")
        self.temperature = temperature
        self.window = window

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        rows, images = context.active, self.buffer("images", context)
        total, last, older = (self.buffer(name, context) for name in ("total", "last", "older"))
        ratio = torch.where((last > 0) & (older > 0), last / older.clamp_min(1e-12), 1.0)[rows]
        context.keep(total, total[rows] + context.task_losses * context.images)
        context.keep(images, images[rows] + context.images)
        full = images >= self.window
        older.copy_(torch.where(full, last, older))
        last.copy_(torch.where(full, total / images.clamp_min(1e-12), last))
        for kept in (total, images):
            kept.masked_fill_(full, 0)
        return context.softmax(ratio / self.temperature) * context.count
