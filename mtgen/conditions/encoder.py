"""All modalities put together in one representation space."""

from torch import Tensor, nn

from mtgen.conditions.label import LabelEncoder
from mtgen.networks.blocks import initialise
from mtgen.schema import Condition


class ConditionEncoder(nn.Module):
    """What is asked for -> one pooled vector in the space that all modalities share.

    Args:
        classes: number of classes; 0 for a data set without.
        size: dimensions of the space.
    """

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.label = LabelEncoder(classes, size)
        initialise(self)

    def forward(self, label: Tensor, present: Tensor) -> Condition:
        """`[B]` class numbers and whether each is given -> `Condition` with `pooled` `[B,d]`."""
        return Condition(self.label(label, present))
