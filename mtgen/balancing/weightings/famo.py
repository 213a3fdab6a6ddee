"""FAMO: all losses fall at the same relative rate."""

from torch import Tensor

from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("famo")
class FAMO(Weighting):
    """Weights z / L, with z a softmax whose logits grow for tasks whose log loss fell less.

    Source: Liu et al. 2023, algorithm 1.

    The loss after a step is taken from the next batch, as the paper suggests, which saves a second forward.

    Args:
        rate: learning rate of the logits.
        decay: weight decay of the logits.
    """

    reads_losses = True
    on_device = True

    def __init__(self, rate: float = 0.025, decay: float = 0.001) -> None:
        super().__init__()
        self.rate = rate
        self.decay = decay

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        rows, losses = context.active, context.task_losses.clamp_min(1e-8)
        logits, before = self.buffer("logits", context), self.buffer("log_loss", context, float("nan"))
        fall = (before[rows] - losses.log()).nan_to_num(0.0)  # 0 for a task that appears for the first time
        z = context.softmax(logits[rows])
        slope = z * (fall - (z * fall).sum()) + self.decay * logits[rows]
        context.keep(logits, logits[rows] - self.rate * slope)
        context.keep(before, losses.log())
        ratio = context.softmax(logits[rows]) / losses
        return (ratio / ratio.sum()) * context.count
