"""The balancer: every task contributes its given fraction of the update."""

from torch import Tensor

from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("balancer")
class Balancer(Weighting):
    """Rescale every gradient to the mean norm, times the task's preference.

    Source: Defossez et al. 2022 (EnCodec), eq. 4.

    A task's weight in the loss therefore has no effect; its preference takes that role. `balancing.ema_half_life`
    smooths the norms, as published.
    """

    on_device = True

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        norms = gramian.diagonal().sqrt()
        return context.mean(norms) / norms
