"""GradNorm: equal gradient norms, larger for tasks that learn slowly."""

from torch import Tensor

from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("gradnorm")
class GradNorm(Weighting):
    """Weights that move each weighted gradient norm towards the mean norm times r^alpha.

    Source: Chen et al. 2018, eq. 2.

    r is a task's loss relative to its first, divided by the mean over the tasks. Norms are the roots of the Gramian's
    diagonal.

    Args:
        alpha: 0: equal norms; above: larger norms for tasks that learn slowly.
        rate: learning rate of the weights.
    """

    reads_losses = True
    on_device = True

    def __init__(self, alpha: float = 0.5, rate: float = 0.025) -> None:
        super().__init__()
        self.alpha = alpha
        self.rate = rate

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        rows, losses, norms = context.active, context.task_losses.clamp_min(1e-12), gramian.diagonal().sqrt()
        kept, first = self.buffer("weights", context, 1.0), self.buffer("first_loss", context)
        context.keep(first, first[rows].where(first[rows] > 0, losses))
        weights = kept[rows]
        slowness = losses / first[rows]
        target = context.mean(weights * norms) * (slowness / context.mean(slowness)) ** self.alpha
        weights = (weights - self.rate * norms * (weights * norms - target).sign()).clamp_min(1e-3)
        context.keep(kept, weights * (context.count / context.sum(weights)))
        return kept[rows]
