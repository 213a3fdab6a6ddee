"""How a dense task takes in what other tasks predict of the whole image.

Sources: Xu et al. 2018 (PAD-Net), Vandenhende et al. 2020 (MTI-Net).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_PROBABILITY_FLOOR = 4.0
"""Predictions are not read below -4, a probability of 0.02, so that a wrong one can be overruled."""


def readable(log_probability: Tensor) -> Tensor:
    """Log-probabilities `[B,K]` as other tasks read them: without gradient, from -2 (unlikely) to 2 (certain)."""
    return log_probability.detach().clamp_min(-LOG_PROBABILITY_FLOOR) + LOG_PROBABILITY_FLOOR / 2


class PredictionReader(nn.Module):
    """What is added to a task's logits for the classes that other tasks predict: learned factors times predictions.

    A factor starts at 1 where both classes have the same name, and at 0 elsewhere.

    Args:
        own: names of the classes of the task that reads.
        sources: task that is read -> names of its classes.
    """

    def __init__(self, own: Sequence[str], sources: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.factors = nn.ParameterDict(
            {
                source: torch.tensor([[float(name == other) for other in others] for name in own])
                for source, others in sources.items()
            }
        )

    def forward(self, logits: Tensor, predicted: Mapping[str, Tensor]) -> Tensor:
        """Add to logits `[B,C,H,W]` what the predictions `[B,K]` of each source say, alike in all pixels."""
        for source, factor in self.factors.items():
            logits = logits + F.linear(predicted[source].float(), factor.float())[:, :, None, None]
        return logits
