"""Classes as conditions."""

from torch import Tensor, nn

from mtgen.conditions.base import ConditionSizes, Encoded, Modality
from mtgen.config import CONDITIONS, ConditionSettings
from mtgen.schema import Batch


@CONDITIONS.register("class")
class Class(Modality):
    """One learned vector per class. Raw form: `[B]` class numbers."""

    component, field = "class", "classes"

    def __init__(self, settings: ConditionSettings, sizes: ConditionSizes) -> None:
        super().__init__(settings, sizes)
        self.table = nn.Embedding(sizes.classes, sizes.size)

    def value(self, batch: Batch) -> Tensor:
        return batch.label

    def encode(self, value: Tensor) -> Encoded:
        return Encoded(self.table(value))

    def identity(self, value: Tensor) -> Tensor:
        return value
