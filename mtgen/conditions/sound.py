"""Sounds as conditions: convolutions over the spectrogram in time, then a small transformer."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.conditions.base import ConditionSizes, Encoded, Modality
from mtgen.config import CONDITIONS, ConditionSettings
from mtgen.networks.attention import Sequence
from mtgen.schema import Batch

STRIDE = 4
"""Frames of a spectrogram that become one token: 40 ms."""


@CONDITIONS.register("sound")
class Sound(Modality):
    """Two convolutions that halve the frames, then a transformer (as in Whisper: Radford et al. 2022).

    Raw form: `[B,mels,frames]` log-mel spectrogram, -1 (silent) to 1.
    """

    class Settings(ConditionSettings):
        share: float = Field(0.5, ge=0, le=1, description="share of the samples with a sound for which it is asked")
        layers: int = Field(1, ge=1, description="layers of the transformer")

    component, sequence = "sound", True

    def __init__(self, settings: Settings, sizes: ConditionSizes) -> None:
        super().__init__(settings, sizes)
        mels, frames = sizes.sound
        self.first = nn.Conv1d(mels, sizes.size, 3, stride=2, padding=1)
        self.second = nn.Conv1d(sizes.size, sizes.size, 3, stride=2, padding=1)
        self.sequence_encoder = Sequence(sizes.size, -(-frames // STRIDE), settings.layers)

    def value(self, batch: Batch) -> Tensor:
        assert batch.sound is not None  # the loader was asked for sounds
        return batch.sound

    def encode(self, value: Tensor) -> Encoded:
        x = F.gelu(self.second(F.gelu(self.first(value)))).transpose(1, 2)
        present = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        tokens, pooled = self.sequence_encoder(x, present)
        return Encoded(pooled, tokens, present)
