"""Dynamic weight average: more weight to the tasks whose losses fall slowly."""

import torch
from torch import Tensor

from mtgen.balancing.weighting import Weighting
from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("dwa")
class DWA(Weighting):
    """Softmax of r / T, r each task's mean loss relative to that of the window before. Source: Liu, Johns and Davison 2019, eq. 7.

    Args:
        temperature: T; large: all alike.
        window: images over which losses are averaged (the paper: an epoch).
    """

    reads_losses = True

    def __init__(self, temperature: float = 2.0, window: float = 10_000) -> None:
        super().__init__()
        if temperature <= 0 or window <= 0:
            raise ValueError(f"temperature={temperature}, window={window}: have to be above 0")
        self.temperature = temperature
        self.window = window

    def __call__(self, gramian: Tensor) -> Tensor:
        rows, seen = self.rows(gramian), self.buffer("images", gramian)
        total, last, older = (self.buffer(name, gramian) for name in ("total", "last", "older"))
        ratio = torch.where((last > 0) & (older > 0), last / older.clamp_min(1e-12), 1.0)[rows]
        total[rows] += self.task_losses(gramian) * self.images
        seen[rows] += self.images
        full = seen >= self.window
        older[full], last[full] = last[full], (total / seen.clamp_min(1e-12))[full]
        total[full], seen[full] = 0, 0
        return torch.softmax(ratio / self.temperature, 0).to(gramian) * len(gramian)
