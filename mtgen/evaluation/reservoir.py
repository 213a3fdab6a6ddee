"""A bounded choice of a stream of unknown length."""

from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Reservoir(Generic[T]):
    """All items that come, or, beyond `size`, a uniform choice of them. Source: Vitter 1985, algorithm R."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seen = size, 0
        self.random = torch.Generator().manual_seed(seed)
        self.items: list[T] = []

    def add(self, item: T) -> None:
        """Take in one item."""
        self.seen += 1
        place = self.seen - 1 if self.seen <= self.size else int(torch.randint(self.seen, (), generator=self.random))
        if place < self.size:
            self.items[place : place + 1] = [item]
