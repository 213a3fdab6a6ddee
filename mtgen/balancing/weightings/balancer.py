"""The balancer: every task has the share of the update that it is given."""

from torch import Tensor

from mtgen.balancing.weighting import Weighting
from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("balancer")
class Balancer(Weighting):
    """All weighted gradients as long as the mean one, times the task's preference. Source: Defossez et al. 2022 (EnCodec), eq. 4.

    So a task's weight in the loss says nothing here, its preference all. `balancing.ema_half_life` smooths the lengths, as published.
    """

    def __call__(self, gramian: Tensor) -> Tensor:
        norms = gramian.diagonal().sqrt()
        return norms.mean() / norms
