"""Sounds as conditions: convolutions over the spectrogram, then a small transformer."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.conditions.base import ConditionSizes, Encoded, Modality
from mtgen.config import CONDITIONS, ConditionSettings
from mtgen.networks.attention import Sequence
from mtgen.schema import Batch

FRAMES_PER_TOKEN = 4
"""Frames of a spectrogram per token: 40 ms."""


@CONDITIONS.register("sound")
class Sound(Modality):
    """Two convolutions with stride 2, then a transformer (as in Whisper: Radford et al. 2022).

    Raw form: `[B,mels,frames]` log-mel spectrogram, -1 (silent) to 1. In training it is shifted in time, and one strip
    of bands and one of frames are masked (SpecAugment: Park et al. 2019), against memorization.
    """

    class Settings(ConditionSettings):
        probability: float = Field(
            0.5, ge=0, le=1, description="probability that a sample with a sound is conditioned on it"
        )
        layers: int = Field(1, ge=1, description="layers of the transformer")
        shift: float = Field(
            0.1, ge=0, le=0.5, description="largest random shift in time in training, as a fraction of the length"
        )
        mask: float = Field(
            0.2,
            ge=0,
            le=0.9,
            description="largest masked strip of bands, and of frames, in training, as a fraction",
        )

    component, sequence, random_numbers = "sound", True, 5

    def __init__(self, settings: Settings, sizes: ConditionSizes) -> None:
        super().__init__(settings, sizes)
        mels, frames = sizes.sound
        self.first = nn.Conv1d(mels, sizes.size, 3, stride=2, padding=1)
        self.second = nn.Conv1d(sizes.size, sizes.size, 3, stride=2, padding=1)
        self.sequence_encoder = Sequence(sizes.size, -(-frames // FRAMES_PER_TOKEN), settings.layers)

    def value(self, batch: Batch) -> Tensor:
        assert batch.sound is not None  # the loader provides sounds
        return batch.sound

    def augment(self, value: Tensor, random: Tensor) -> Tensor:
        bands, frames = value.shape[1:]
        band, frame = (torch.arange(n, device=value.device) for n in (bands, frames))
        shift = ((2 * random[:, 0] - 1) * self.settings.shift * frames).round().long()
        source = frame - shift[:, None]
        inside = ((source >= 0) & (source < frames))[:, None]
        moved = value.gather(2, source.clamp(0, frames - 1)[:, None].expand_as(value))
        kept = (
            inside
            & ~_strip(band, random[:, 1:3], self.settings.mask)[:, :, None]
            & ~_strip(frame, random[:, 3:5], self.settings.mask)[:, None]
        )
        return moved.where(kept, -1.0)

    def encode(self, value: Tensor) -> Encoded:
        x = F.gelu(self.second(F.gelu(self.first(value)))).transpose(1, 2)
        present = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        tokens, pooled = self.sequence_encoder(x, present)
        return Encoded(pooled, tokens, present)


def _strip(index: Tensor, random: Tensor, largest: float) -> Tensor:
    """Return `[B,n]` bool: a random strip of consecutive indices.

    Args:
        index: `[n]` 0 to n - 1.
        random: `[B,2]` random numbers in [0,1), for length and position.
        largest: largest length, as a fraction of n.
    """
    size = len(index)
    length = (random[:, :1] * (int(largest * size) + 1)).floor()
    begin = (random[:, 1:] * (size - length + 1)).floor()
    return (index >= begin) & (index < begin + length)
