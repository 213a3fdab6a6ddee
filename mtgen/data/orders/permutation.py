"""Seeded permutations with random access, and the order that shuffles a whole split in every epoch."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtgen.utils import counter_rng

FEISTEL_ROUNDS = 6
"""Four rounds make a pseudorandom permutation (Luby and Rackoff 1988); two more help small domains."""

MAX_SORTED_SAMPLES = 64
"""Up to this size, numbers are sorted by random numbers: a Feistel network over few bits is measurably uneven."""


class SampleOrder(Protocol):
    """A function of (seed, position): the order does not depend on the number of workers or on where a run resumes."""

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions since the start of the run -> `[B]` sample numbers."""
        ...

    def ahead(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` sample numbers whose shards should be downloaded when the samples at these positions are read."""
        ...


def permute(seed: int, purpose: str, key: Tensor, number: Tensor, size: Tensor) -> Tensor:
    """Apply to each number the permutation of `0..size-1` that its key selects.

    A Feistel network permutes the integers of the next even number of bits; results that are not below `size` are sent
    through it again until they are (cycle walking, Black and Rogaway 2002).

    Args:
        seed, purpose: select the family of permutations.
        key: `[B]` int64; equal keys have equal sizes.
        number: `[B]` int64 in `0..size-1`.
        size: `[B]` int64.

    Returns:
        `[B]` int64 in `0..size-1`.
    """
    permuted = torch.empty_like(number)
    small = size <= MAX_SORTED_SAMPLES
    for part, method in ((small, _by_sorting), (~small, _by_feistel)):
        if part.all():
            return method(seed, purpose, key, number, size)
        if part.any():
            permuted[part] = method(seed, purpose, key[part], number[part], size[part])
    return permuted


def _by_sorting(seed: int, purpose: str, key: Tensor, number: Tensor, size: Tensor) -> Tensor:
    keys, row = key.unique(return_inverse=True)
    sizes = torch.empty_like(keys).scatter_(0, row, size)
    width = int(sizes.max()) if len(sizes) else 0
    random = counter_rng.bits(seed, purpose, keys, width)
    random[torch.arange(width) >= sizes[:, None]] = torch.iinfo(torch.int64).max
    return random.argsort(1)[row, number]


def _by_feistel(seed: int, purpose: str, key: Tensor, number: Tensor, size: Tensor) -> Tensor:
    half = (torch.frexp((size - 1).double()).exponent.long() + 1) // 2  # half the bits of the largest number
    number = _feistel(seed, purpose, key, number, half)
    outside = (number >= size).nonzero()[:, 0]
    while len(outside):
        number[outside] = _feistel(seed, purpose, key[outside], number[outside], half[outside])
        outside = outside[number[outside] >= size[outside]]
    return number


def _feistel(seed: int, purpose: str, key: Tensor, number: Tensor, half: Tensor) -> Tensor:
    """One pass through the network over `2 * half` bits."""
    low_bits = (1 << half) - 1
    left, right = number >> half, number & low_bits
    for i in range(FEISTEL_ROUNDS):
        random = counter_rng.bits(seed, f"{purpose} {i}", (key << 32) + right, 1)[:, 0]
        left, right = right, left ^ (random & low_bits)
    return (left << half) | right


class Order:
    """A permutation of `0..n-1` for each epoch, keyed by (seed, epoch).

    Args:
        n: number of samples, at least 1.
        seed: seed of the run.
        purpose: distinguishes several orders with the same seed.
    """

    def __init__(self, n: int, seed: int, purpose: str = "order") -> None:
        if n < 1:
            raise ValueError(f"n={n}: an order needs at least one sample")
        self.n = n
        self.seed = seed
        self.purpose = purpose

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions since the start of the run -> `[B]` sample numbers in `0..n-1`."""
        positions = torch.from_numpy(np.asarray(position, dtype=np.int64))
        epoch, number = positions // self.n, positions % self.n
        return permute(self.seed, self.purpose, epoch, number, torch.full_like(number, self.n)).numpy()

    def ahead(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples themselves: the next ones may be in any shard, so that no shard is worth downloading early."""
        return self.sample(position)
