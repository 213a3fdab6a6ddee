"""The data set of a mixture as a condition: generated images look like that data set."""

import torch
from torch import Tensor, nn

from mtgen.conditions.base import ConditionSizes, Encoded, Modality
from mtgen.config import CONDITIONS, ConditionSettings
from mtgen.schema import Batch


@CONDITIONS.register("domain")
class Domain(Modality):
    """One learned vector per data set. Raw form: `[B]` numbers of data sets in `data.mixture`."""

    def __init__(self, settings: ConditionSettings, sizes: ConditionSizes) -> None:
        super().__init__(settings, sizes)
        self.table = nn.Embedding(sizes.domains, sizes.size)

    def value(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.label) if batch.domain is None else batch.domain

    def encode(self, value: Tensor) -> Encoded:
        return Encoded(self.table(value))

    def identity(self, value: Tensor) -> Tensor:
        return value
