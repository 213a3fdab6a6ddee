"""Equal weights: the plain sum of the losses, the baseline of every other method."""

import torch
from torch import Tensor

from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("equal")
class Equal:
    """Weight 1 for every task, whatever the gradients are."""

    reads_gramian = False

    def __call__(self, gramian: Tensor) -> Tensor:
        return torch.ones_like(gramian[0])
