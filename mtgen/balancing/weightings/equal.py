"""Equal weights: the plain sum of the losses, the baseline of every other method."""

from torch import Tensor

from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("equal")
class Equal(Weighting):
    """Weight 1 for every task, or its preference, whatever the gradients are."""

    takes_preference = True
    on_device = True

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        return context.preference
