"""A reference image as a condition: its embedding by the shared trunk."""

from pydantic import Field
from torch import Tensor

from mtgen.conditions.base import Encoded, Modality
from mtgen.config import CONDITIONS, ConditionSettings
from mtgen.schema import Batch


@CONDITIONS.register("image")
class Image(Modality):
    """The alignment task's embedding of an image. Source: Casanova et al. 2021 (instance conditioning).

    Raw form: `[B,d]` embeddings from `DiscriminatorModule.embed`; the alignment task has to be on.
    """

    class Settings(ConditionSettings):
        probability: float = Field(
            0.1, ge=0, le=1, description="probability that a sample is conditioned on its own embedding"
        )

    def value(self, batch: Batch) -> Tensor:
        return batch.image

    def encode(self, value: Tensor) -> Encoded:
        return Encoded(value)
