"""Class numbers as conditions."""

import torch
from torch import Tensor, nn


class LabelEncoder(nn.Module):
    """One learned vector a class, and one for "no class given"."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, size)

    def forward(self, label: Tensor, present: Tensor) -> Tensor:
        """`[B]` class numbers, `[B]` bool -> `[B,d]`."""
        return self.table(torch.where(present, label, self.classes))
