"""Uncertainty weighting: a learned variance a task."""

import torch
from torch import Tensor

from mtgen.balancing.weighting import Weighting
from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("uncertainty")
class Uncertainty(Weighting):
    """Weights e^-s, s learned by descent on e^-s L + s for each task's loss L. Source: Kendall et al. 2018, eq. 10.

    Args:
        rate: learning rate of s, a step.
    """

    reads_losses = True

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        self.rate = rate

    def __call__(self, gramian: Tensor) -> Tensor:
        rows, kept, losses = self.rows(gramian), self.buffer("log_variance", gramian), self.task_losses(gramian)
        s = kept[rows]
        kept[rows] = s - self.rate * (1 - torch.exp(-s) * losses).clamp(-10, 10)
        return torch.softmax(-s, 0).to(gramian) * len(gramian)
