"""Which sample stands at a position: a seeded permutation for every epoch, computed and never stored."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtgen import counter

ROUNDS = 6
"""Feistel rounds: four make a pseudorandom permutation (Luby and Rackoff 1988), two more are for small domains."""

FEW = 64
"""Up to so many samples an epoch is sorted by random numbers: a network over so few bits is measurably uneven."""


class Order:
    """A bijection of `0..n-1` for each epoch, keyed by (seed, epoch) and readable at any position.

    A Feistel network permutes the next even number of bits; what falls outside `n` is sent through it again until it does
    not (cycle walking, Black and Rogaway 2002).

    Args:
        n: number of samples, at least 1.
        seed: of the run.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError(f"an order needs at least one sample, got n={n}")
        self.n, self.seed = n, seed
        self._half = ((n - 1).bit_length() + 1) // 2

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions, counted since the start of the run -> `[B]` sample numbers in `0..n-1`."""
        at = torch.from_numpy(np.asarray(position, dtype=np.int64))
        epoch, place = at // self.n, at % self.n
        if self.n <= FEW:
            epochs, row = epoch.unique(return_inverse=True)
            return counter.bits(self.seed, "order", epochs, self.n).argsort(1)[row, place].numpy()
        place = self._permute(epoch, place)
        outside = (place >= self.n).nonzero()[:, 0]
        while len(outside):
            place[outside] = self._permute(epoch[outside], place[outside])
            outside = outside[place[outside] >= self.n]
        return place.numpy()

    def _permute(self, epoch: Tensor, place: Tensor) -> Tensor:
        """One pass through the network over `2 * self._half` bits."""
        low_bits = (1 << self._half) - 1
        left, right = place >> self._half, place & low_bits
        for turn in range(ROUNDS):
            random = counter.bits(self.seed, f"order {turn}", (epoch << 32) + right, 1)[:, 0]
            left, right = right, left ^ (random & low_bits)
        return (left << self._half) | right
