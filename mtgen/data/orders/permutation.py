"""Seeded permutations with random access, and the order that shuffles a whole split in every epoch."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

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


def permute(
    seed: int, purpose: str, key: NDArray[np.int64], number: NDArray[np.int64], size: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Apply to each number the permutation of `0..size-1` that its key selects.

    A Feistel network permutes the integers of the next even number of bits; results that are not below `size` are sent
    through it again until they are (cycle walking, Black and Rogaway 2002).

    Args:
        seed, purpose: select the family of permutations.
        key: `[B]`; equal keys have equal sizes.
        number: `[B]`, in `0..size-1`.
        size: `[B]`.

    Returns:
        `[B]`, in `0..size-1`.
    """
    permuted = np.empty_like(number)
    small = size <= MAX_SORTED_SAMPLES
    for rows, method in ((np.flatnonzero(small), _by_sorting), (np.flatnonzero(~small), _by_feistel)):
        if len(rows):
            permuted[rows] = method(seed, purpose, key[rows], number[rows], size[rows])
    return permuted


def _by_sorting(
    seed: int, purpose: str, key: NDArray[np.int64], number: NDArray[np.int64], size: NDArray[np.int64]
) -> NDArray[np.int64]:
    keys, first, row = np.unique(key, return_index=True, return_inverse=True)
    sizes = size[first]
    random = counter_rng.bits(seed, purpose, torch.from_numpy(keys), int(sizes.max()))
    random[torch.arange(random.shape[1]) >= torch.from_numpy(sizes)[:, None]] = torch.iinfo(torch.int64).max
    return random.argsort(1).numpy()[row, number]


def _by_feistel(
    seed: int, purpose: str, key: NDArray[np.int64], number: NDArray[np.int64], size: NDArray[np.int64]
) -> NDArray[np.int64]:
    half = (np.frexp((size - 1).astype(np.float64))[1].astype(np.uint64) + np.uint64(1)) >> np.uint64(1)
    permuted, outside = number.astype(np.uint64), np.arange(len(number))
    keys, sizes = key.astype(np.uint64) << np.uint64(32), size.astype(np.uint64)
    while len(outside):
        permuted[outside] = _feistel(seed, purpose, keys[outside], permuted[outside], half[outside])
        outside = outside[permuted[outside] >= sizes[outside]]
    return permuted.astype(np.int64)


def _feistel(
    seed: int, purpose: str, key: NDArray[np.uint64], number: NDArray[np.uint64], half: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """One pass through the network over `2 * half` bits, half the bits of the largest number."""
    low_bits = (np.uint64(1) << half) - np.uint64(1)
    left, right = number >> half, number & low_bits
    for i in range(FEISTEL_ROUNDS):
        random = counter_rng.first_bits(seed, f"{purpose} {i}", key + right)
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
        epoch, number = np.divmod(np.asarray(position, dtype=np.int64), self.n)
        return permute(self.seed, self.purpose, epoch, number, np.full_like(number, self.n))

    def ahead(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples themselves: the next ones may be in any shard, so that no shard is worth downloading early."""
        return self.sample(position)
