"""Sample orders: position -> sample number, by seeded permutations of every epoch that are computed, never stored."""

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtgen.utils import counter_rng

FEISTEL_ROUNDS = 6
"""Four rounds make a pseudorandom permutation (Luby and Rackoff 1988); two more help small domains."""

MAX_SORTED_SAMPLES = 64
"""Epochs up to this size are sorted by random numbers: a Feistel network over few bits is measurably uneven."""

MIXTURE_BLOCK = 1000
"""Number of positions over which the proportions of a mixture are exact."""


class SampleOrder(Protocol):
    """A function of (seed, position): the order does not depend on the number of workers or on where a run resumes.

    Attributes:
        reach: how many positions ahead to prefetch.
    """

    reach: int

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions since the start of the run -> `[B]` sample numbers."""
        ...


class Order:
    """A permutation of `0..n-1` for each epoch, keyed by (seed, epoch), with random access.

    A Feistel network permutes the integers of the next even number of bits; results outside `0..n-1` are sent through
    it again until they are inside (cycle walking, Black and Rogaway 2002).

    Args:
        n: number of samples, at least 1.
        seed: seed of the run.
        purpose: distinguishes several orders with the same seed.
    """

    reach = 0  # the next samples may be in any shard, so prefetching does not help

    def __init__(self, n: int, seed: int, purpose: str = "order") -> None:
        if n < 1:
            raise ValueError(f"n={n}: an order needs at least one sample")
        self.n = n
        self.seed = seed
        self.purpose = purpose
        self._half = ((n - 1).bit_length() + 1) // 2

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions since the start of the run -> `[B]` sample numbers in `0..n-1`."""
        positions = torch.from_numpy(np.asarray(position, dtype=np.int64))
        epoch, number = positions // self.n, positions % self.n
        if self.n <= MAX_SORTED_SAMPLES:
            epochs, row = epoch.unique(return_inverse=True)
            return counter_rng.bits(self.seed, self.purpose, epochs, self.n).argsort(1)[row, number].numpy()
        number = self._permute(epoch, number)
        outside = (number >= self.n).nonzero()[:, 0]
        while len(outside):
            number[outside] = self._permute(epoch[outside], number[outside])
            outside = outside[number[outside] >= self.n]
        return number.numpy()

    def _permute(self, epoch: Tensor, number: Tensor) -> Tensor:
        """One pass through the Feistel network over `2 * self._half` bits."""
        low_bits = (1 << self._half) - 1
        left, right = number >> self._half, number & low_bits
        for i in range(FEISTEL_ROUNDS):
            random = counter_rng.bits(self.seed, f"{self.purpose} {i}", (epoch << 32) + right, 1)[:, 0]
            left, right = right, left ^ (random & low_bits)
        return (left << self._half) | right


class WindowedOrder:
    """Shuffle the shards in every epoch, and the samples within each window of `window` consecutive shards.

    An epoch has every sample exactly once, and reads each shard during one window only: meant for remote shards.

    Args:
        sizes: number of samples of each shard; the samples of a shard are consecutive in the index.
        window: number of shards that are shuffled together.
        seed: seed of the run.
        purpose: distinguishes several orders with the same seed.
    """

    def __init__(self, sizes: NDArray[np.int64], window: int, seed: int, purpose: str = "order") -> None:
        first = np.cumsum(sizes) - sizes
        self._first = first[sizes > 0]
        self._sizes = np.asarray(sizes, dtype=np.int64)[sizes > 0]
        self.n = int(self._sizes.sum())
        self.window = window
        self.seed = seed
        self.purpose = purpose
        if self.n < 1:
            raise ValueError(f"n={self.n}: an order needs at least one sample")
        self.reach = -(-self.n * window // len(self._sizes))
        self._windows = -(-len(self._sizes) // window)
        self._shards = Order(len(self._sizes), seed, f"{purpose} of shards")
        self._epoch = lru_cache(maxsize=4)(self._epoch_table)
        self._window = lru_cache(maxsize=4)(self._window_table)

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions since the start of the run -> `[B]` sample numbers in `0..n-1`."""
        position = np.asarray(position, dtype=np.int64)
        samples = np.empty_like(position)
        epoch = position // self.n
        for e in np.unique(epoch).tolist():
            _, start = self._epoch(e)
            offset = position - e * self.n
            window = np.where(epoch == e, np.searchsorted(start[:: self.window], offset, side="right") - 1, -1)
            for w in np.unique(window[window >= 0]).tolist():
                rows = window == w
                samples[rows] = self._window(e, w)[offset[rows] - start[w * self.window]]
        return samples

    def _epoch_table(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards of an epoch in order, and where each starts in the epoch."""
        count = len(self._sizes)
        shards = self._shards.sample(epoch * count + np.arange(count))
        return shards, np.cumsum(self._sizes[shards]) - self._sizes[shards]

    def _window_table(self, epoch: int, window: int) -> NDArray[np.int64]:
        """The samples of a window in order."""
        shards = self._epoch(epoch)[0][window * self.window : (window + 1) * self.window]
        samples = np.concatenate([np.arange(self._first[s], self._first[s] + self._sizes[s]) for s in shards])
        key = torch.tensor([epoch * self._windows + window])
        random = counter_rng.bits(self.seed, f"{self.purpose} in windows", key, len(samples))[0]
        return samples[random.argsort(stable=True).numpy()]


class InterleavedOrder:
    """Several orders interleaved in exact proportions, each with its own epochs.

    Every block of `MIXTURE_BLOCK` positions has the same number of samples of each order (see `quotas`), shuffled
    differently. The k-th sample of an order, over all blocks, is that of its position k.

    Args:
        orders: one per data set; the samples of the data sets are numbered consecutively.
        sizes: number of samples of each data set.
        weights: positive proportions; only the ratios matter.
        seed: seed of the run.

    Raises:
        ValueError: a weight is too small for a single sample per block.
    """

    def __init__(self, orders: list[SampleOrder], sizes: list[int], weights: list[float], seed: int) -> None:
        self.orders = orders
        self.quota = quotas(weights)
        if self.quota.min() < 1:
            raise ValueError(f"a weight is below {1 / MIXTURE_BLOCK:.1%} of their sum")
        self._begin = np.cumsum(self.quota) - self.quota
        self._offset = np.cumsum(sizes) - np.asarray(sizes)
        self._block = Order(MIXTURE_BLOCK, seed, "mixture")
        self.reach = max(
            int(order.reach * MIXTURE_BLOCK / quota) for order, quota in zip(orders, self.quota, strict=True)
        )

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions since the start of the run -> `[B]` sample numbers of the mixture."""
        block = np.asarray(position, dtype=np.int64) // MIXTURE_BLOCK
        slot = self._block.sample(position)
        member = np.searchsorted(self._begin, slot, side="right") - 1
        own_position = block * self.quota[member] + slot - self._begin[member]
        samples = np.empty_like(own_position)
        for number, order in enumerate(self.orders):
            rows = member == number
            if rows.any():
                samples[rows] = self._offset[number] + order.sample(own_position[rows])
        return samples


class LabelOversamplingOrder:
    """Labeled and unlabeled samples in exact proportions, each group with its own epochs: oversamples rare labels.

    Args:
        labeled: `[N]` bool, with samples of both groups.
        fraction: fraction of the positions that are labeled samples.
        seed: seed of the run.

    Raises:
        ValueError: the fraction leaves one of the groups without a single sample per block.
    """

    reach = 0

    def __init__(self, labeled: NDArray[np.bool_], fraction: float, seed: int) -> None:
        groups = [np.flatnonzero(labeled), np.flatnonzero(~labeled)]
        orders: list[SampleOrder] = [
            Order(len(group), seed, f"order of {name}") for name, group in zip(("some", "none"), groups, strict=True)
        ]
        self._order = InterleavedOrder(orders, [len(group) for group in groups], [fraction, 1 - fraction], seed)
        self._number = np.concatenate(groups)

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions since the start of the run -> `[B]` sample numbers."""
        return self._number[self._order.sample(position)]


def quotas(weights: list[float]) -> NDArray[np.int64]:
    """The number of `MIXTURE_BLOCK` positions for each weight, by the largest remainder method."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * MIXTURE_BLOCK
    quota = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(quota - exact, kind="stable")[: MIXTURE_BLOCK - quota.sum()]
    quota[largest_remainders] += 1
    return quota
