"""Uncertainty weighting: a learned variance per task."""

import torch
from torch import Tensor

from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("uncertainty")
class Uncertainty(Weighting):
    """Weights e^-s, with s learned by gradient descent on e^-s L + s for each task's loss L.

    Source: Kendall et al. 2018, eq. 10.

    Args:
        rate: learning rate of s.
    """

    reads_losses = True
    on_device = True

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        self.rate = rate

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        rows, log_variance = context.active, self.buffer("log_variance", context)
        s = log_variance[rows]
        context.keep(log_variance, s - self.rate * (1 - torch.exp(-s) * context.task_losses).clamp(-10, 10))
        return context.softmax(-s) * context.count
