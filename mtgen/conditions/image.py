"""A reference image as a condition: its embedding by the shared trunk."""

import math

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mtgen.conditions.base import ConditionSizes, Encoded, Modality
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

        noise: float = Field(
            0.5,
            ge=0,
            description="length of the noise that is added to the embedding in training, relative to the embedding's; "
            "without it the discriminator recognizes the very image that is asked for",
        )

    def __init__(self, settings: Settings, sizes: ConditionSizes) -> None:
        super().__init__(settings, sizes)
        self.random_numbers = sizes.size if settings.noise else 0

    def augment(self, value: Tensor, random: Tensor) -> Tensor:
        """Stand beside the image, where its neighbors are: the real image of the pair is not the one asked for."""
        noise = (random - 0.5) * math.sqrt(12 / value.shape[1])  # of length about 1
        return F.normalize(value + self.settings.noise * noise.to(value.dtype), dim=1)

    def value(self, batch: Batch) -> Tensor:
        return batch.image

    def encode(self, value: Tensor) -> Encoded:
        return Encoded(value)
