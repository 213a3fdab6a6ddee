"""All modalities, combined in one representation space."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.conditions.base import Encoded, Modality
from mtgen.networks.blocks import initialize
from mtgen.schema import Condition, Prompt


class ConditionEncoder(nn.Module):
    """Encodes any subset of modalities as one pooled vector, tokens and a layout.

    Every modality's vector has length sqrt(d), that of a standard normal. The pooled vector is the mean of the given
    modalities' vectors, or a learned vector if none is given. Tokens are concatenated after one for the pooled vector,
    which is always there.

    Args:
        modalities: by name, in the order of the configuration.
        size: dimensions of the space.
    """

    def __init__(self, modalities: dict[str, Modality], size: int) -> None:
        super().__init__()
        self.modalities = nn.ModuleDict(modalities)
        self.size = size
        self.nothing = nn.Parameter(torch.randn(size))
        self.kind = nn.ParameterDict({name: 0.1 * torch.randn(size) for name, m in modalities.items() if m.sequence})
        initialize(self)

    def modality(self, name: str) -> Modality:
        """Return the modality of that name."""
        found = self.modalities[name]
        assert isinstance(found, Modality)
        return found

    @property
    def names(self) -> list[str]:
        """Names of the modalities that have a vector."""
        return [name for name in self.modalities if not self.modality(name).spatial]

    @property
    def layout_channels(self) -> int:
        """Channels of the layout: the maps of all spatial modalities."""
        return sum(self.modality(name).channels for name in self.modalities if self.modality(name).spatial)

    @property
    def sequences(self) -> bool:
        """Whether any modality has tokens."""
        return len(self.kind) > 0

    def unit(self, encoded: Encoded) -> Tensor:
        """Return a modality's vector, normalized to length sqrt(d): `[B,d]` float32."""
        return F.normalize(encoded.pooled.float(), dim=1) * math.sqrt(self.size)

    def encode(self, prompt: Prompt) -> dict[str, Encoded]:
        """Encode every modality of a prompt that has a vector."""
        return {name: self.modality(name).encode(prompt.values[name]) for name in self.names if name in prompt.values}

    def forward(self, prompt: Prompt, encoded: dict[str, Encoded] | None = None) -> Condition:
        """Combine the given modalities of a prompt.

        Args:
            encoded: the result of `encode` for the prompt, if it is known already.
        """
        encoded = self.encode(prompt) if encoded is None else encoded
        total = self.nothing.new_zeros(prompt.size, self.size)
        count = self.nothing.new_zeros(prompt.size, 1)
        for name, one in encoded.items():
            given = prompt.given[name][:, None].to(total.dtype)
            total, count = total + given * self.unit(one), count + given
        pooled = torch.where(count > 0, total / count.clamp_min(1), self.nothing)
        condition = Condition(pooled, layout=self._layout(prompt))
        if self.sequences:
            tokens, present = [pooled[:, None]], [torch.ones(prompt.size, 1, dtype=torch.bool, device=pooled.device)]
            for name, one in encoded.items():
                if one.tokens is not None and one.present is not None:
                    tokens.append(one.tokens.float() + self.kind[name])
                    present.append(one.present & prompt.given[name][:, None])
            condition.tokens, condition.present = torch.cat(tokens, 1), torch.cat(present, 1)
        return condition

    def _layout(self, prompt: Prompt) -> Tensor | None:
        """`[B,L,H,W]` concatenated maps of all spatial modalities, 0 if not given; `None` if the prompt has none."""
        spatial = [name for name in self.modalities if self.modality(name).spatial]
        present = {
            name: prompt.values[name] * prompt.given[name][:, None, None, None]
            for name in spatial
            if name in prompt.values
        }
        if not present:
            return None
        like = next(iter(present.values()))
        empty = {
            name: like.new_zeros(prompt.size, self.modality(name).channels, *like.shape[2:])
            for name in spatial
            if name not in present
        }
        return torch.cat([(present | empty)[name] for name in spatial], 1)
