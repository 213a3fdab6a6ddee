"""Captions as conditions: a small transformer over their tokens, or over the output of a frozen encoder."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from mtgen.conditions.base import ConditionSizes, Encoded, Modality
from mtgen.conditions.frozen import frozen_text
from mtgen.config import CONDITIONS, ConditionSettings, PathKind
from mtgen.networks.attention import Sequence
from mtgen.schema import Batch
from mtgen.utils.counter_rng import hash_rows

CAPTION_PADDING = 0
"""Token number after a caption's end."""


@CONDITIONS.register("caption")
class Caption(Modality):
    """A transformer over the embeddings of a caption's tokens. Raw form: `[B,T]` token numbers, 0 after the end.

    The embeddings are learned, or those of a pretrained text encoder (`encoder`) with a learned projection.
    """

    class Settings(ConditionSettings):
        probability: float = Field(
            0.5, ge=0, le=1, description="probability that a sample with a caption is conditioned on it"
        )
        tokens: int = Field(
            32, ge=1, le=1024, description="length of the longest caption, in tokens; longer ones are cut off"
        )
        layers: int = Field(1, ge=1, description="layers of the transformer")
        encoder: Annotated[str | None, PathKind.PATH] = Field(
            None,
            min_length=1,
            description="TorchScript file or URL of a frozen text encoder (data_shards/README.md); default: none",
        )

    component, sequence = "caption", True

    def __init__(self, settings: Settings, sizes: ConditionSizes) -> None:
        super().__init__(settings, sizes)
        self.frozen = None if settings.encoder is None else frozen_text(settings.encoder)
        self.table = (
            nn.Embedding(sizes.vocabulary, sizes.size)
            if self.frozen is None
            else nn.Linear(self.frozen.width, sizes.size)
        )
        self.sequence_encoder = Sequence(sizes.size, settings.tokens, settings.layers)

    def value(self, batch: Batch) -> Tensor:
        assert batch.caption is not None  # the loader provides captions
        return batch.caption

    def encode(self, value: Tensor) -> Encoded:
        present = value != CAPTION_PADDING
        inputs = value if self.frozen is None else self.frozen((value - 1).clamp_min(0), present)
        tokens, pooled = self.sequence_encoder(self.table(inputs), present)
        return Encoded(pooled, tokens, present)

    def identity(self, value: Tensor) -> Tensor:
        return hash_rows(value)
