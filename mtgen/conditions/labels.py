"""Several classes at once as a condition: all classes in the image."""

from torch import Tensor, nn

from mtgen.conditions.base import ConditionSizes, Encoded, Modality
from mtgen.config import CONDITIONS, ConditionSettings
from mtgen.schema import Batch
from mtgen.utils.counter_rng import hash_rows


@CONDITIONS.register("labels")
class Labels(Modality):
    """The mean of the vectors of all present classes. Raw form: `[B,K]`, 1 for each present class."""

    component, field = "tags", "classes"

    def __init__(self, settings: ConditionSettings, sizes: ConditionSizes) -> None:
        super().__init__(settings, sizes)
        self.table = nn.Embedding(sizes.classes, sizes.size)

    def value(self, batch: Batch) -> Tensor:
        assert batch.labels is not None  # the loader provides tags
        return batch.labels.to(batch.image.dtype)

    def encode(self, value: Tensor) -> Encoded:
        return Encoded(value @ self.table.weight / value.sum(1, keepdim=True).clamp_min(1))

    def identity(self, value: Tensor) -> Tensor:
        return hash_rows(value.long())
