"""Which sample stands at a position: seeded permutations for every epoch, computed and never stored."""

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtgen.utils import counter_rng

ROUNDS = 6
"""Feistel rounds: four make a pseudorandom permutation (Luby and Rackoff 1988), two more are for small domains."""

MAX_SORTED_SAMPLES = 64
"""Up to so many samples an epoch is sorted by random numbers: a network over so few bits is measurably uneven."""

MIXTURE_BLOCK = 1000
"""Positions over which a mixture's shares are exact."""


class SampleOrder(Protocol):
    """A function of (seed, position): any number of workers, from any position on, sees the same samples.

    Attributes:
        reach: positions that lie between one place and the next whose files should be at hand by then.
    """

    reach: int

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions, counted since the start of the run -> `[B]` sample numbers."""
        ...


class Order:
    """A bijection of `0..n-1` for each epoch, keyed by (seed, epoch) and readable at any position.

    A Feistel network permutes the next even number of bits; what falls outside `n` is sent through it again until it does
    not (cycle walking, Black and Rogaway 2002).

    Args:
        n: number of samples, at least 1.
        seed: of the run.
        purpose: tells several orders with one seed apart.
    """

    reach = 0  # the next samples may be anywhere

    def __init__(self, n: int, seed: int, purpose: str = "order") -> None:
        if n < 1:
            raise ValueError(f"an order needs at least one sample, got n={n}")
        self.n = n
        self.seed = seed
        self.purpose = purpose
        self._half = ((n - 1).bit_length() + 1) // 2

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions, counted since the start of the run -> `[B]` sample numbers in `0..n-1`."""
        at = torch.from_numpy(np.asarray(position, dtype=np.int64))
        epoch, place = at // self.n, at % self.n
        if self.n <= MAX_SORTED_SAMPLES:
            epochs, row = epoch.unique(return_inverse=True)
            return counter_rng.bits(self.seed, self.purpose, epochs, self.n).argsort(1)[row, place].numpy()
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
            random = counter_rng.bits(self.seed, f"{self.purpose} {turn}", (epoch << 32) + right, 1)[:, 0]
            left, right = right, left ^ (random & low_bits)
        return (left << self._half) | right


class WindowedOrder:
    """Every epoch the shards in another order, and the samples of `window` shards that follow each other shuffled among themselves.

    Each sample exactly once an epoch, and each shard is read during one window only: for shards that have to be fetched.

    Args:
        sizes: samples of each shard; a shard's samples follow each other in the index.
        window: shards that are shuffled together.
        seed: of the run.
        purpose: tells several orders with one seed apart.
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
            raise ValueError(f"an order needs at least one sample, got n={self.n}")
        self.reach = -(-self.n * window // len(self._sizes))
        self._windows = -(-len(self._sizes) // window)
        self._shards = Order(len(self._sizes), seed, f"{purpose} of shards")
        self._epoch = lru_cache(maxsize=4)(self._epoch_table)
        self._window = lru_cache(maxsize=4)(self._window_table)

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions, counted since the start of the run -> `[B]` sample numbers in `0..n-1`."""
        position = np.asarray(position, dtype=np.int64)
        found = np.empty_like(position)
        epoch = position // self.n
        for e in np.unique(epoch).tolist():
            _, start = self._epoch(e)
            place = position - e * self.n
            window = np.where(epoch == e, np.searchsorted(start[:: self.window], place, side="right") - 1, -1)
            for w in np.unique(window[window >= 0]).tolist():
                rows = window == w
                found[rows] = self._window(e, w)[place[rows] - start[w * self.window]]
        return found

    def _epoch_table(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """An epoch's shards in their order, and the place where each begins."""
        count = len(self._sizes)
        shards = self._shards.sample(epoch * count + np.arange(count))
        return shards, np.cumsum(self._sizes[shards]) - self._sizes[shards]

    def _window_table(self, epoch: int, window: int) -> NDArray[np.int64]:
        """The samples of a window in their order."""
        shards = self._epoch(epoch)[0][window * self.window : (window + 1) * self.window]
        samples = np.concatenate([np.arange(self._first[s], self._first[s] + self._sizes[s]) for s in shards])
        turn = torch.tensor([epoch * self._windows + window])
        return samples[
            counter_rng.bits(self.seed, f"{self.purpose} in windows", turn, len(samples))[0]
            .argsort(stable=True)
            .numpy()
        ]


class InterleavedOrder:
    """Several orders side by side in exact shares, each with epochs of its own.

    Every block of `MIXTURE_BLOCK` positions holds the same number of each (largest remainder), in an order that is shuffled anew for each block;
    the k-th position of a data set in all blocks together is position k of its own order.

    Args:
        orders: one of each data set; their samples are numbered one data set after the other.
        sizes: samples of each data set.
        weights: positive; their sum does not matter.
        seed: of the run.

    Raises:
        ValueError: a weight is too small for a single sample in a block.
    """

    def __init__(self, orders: list[SampleOrder], sizes: list[int], weights: list[float], seed: int) -> None:
        self.orders = orders
        self.quota = quotas(weights)
        if self.quota.min() < 1:
            raise ValueError(f"a weight below {1 / MIXTURE_BLOCK:.1%} of all")
        self._begin = np.cumsum(self.quota) - self.quota
        self._offset = np.cumsum(sizes) - np.asarray(sizes)
        self._block = Order(MIXTURE_BLOCK, seed, "mixture")
        self.reach = max(
            int(order.reach * MIXTURE_BLOCK / quota) for order, quota in zip(orders, self.quota, strict=True)
        )

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions, counted since the start of the run -> `[B]` sample numbers of the mixture."""
        block, ticket = np.asarray(position, dtype=np.int64) // MIXTURE_BLOCK, self._block.sample(position)
        which = np.searchsorted(self._begin, ticket, side="right") - 1
        own = block * self.quota[which] + ticket - self._begin[which]
        found = np.empty_like(own)
        for number, order in enumerate(self.orders):
            rows = which == number
            if rows.any():
                found[rows] = self._offset[number] + order.sample(own[rows])
        return found


class LabelOversamplingOrder:
    """Samples with labels and samples without in exact shares, each group with epochs of its own: few labels are seen often.

    Args:
        labeled: `[N]` bool, some of them true and some not.
        share: of the positions, how many fall to samples with labels.
        seed: of the run.

    Raises:
        ValueError: a share too small for a single sample in a block, or too large.
    """

    reach = 0

    def __init__(self, labeled: NDArray[np.bool_], share: float, seed: int) -> None:
        groups = [np.flatnonzero(labeled), np.flatnonzero(~labeled)]
        orders: list[SampleOrder] = [
            Order(len(group), seed, f"order of {name}") for name, group in zip(("some", "none"), groups, strict=True)
        ]
        self._order = InterleavedOrder(orders, [len(group) for group in groups], [share, 1 - share], seed)
        self._number = np.concatenate(groups)

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions, counted since the start of the run -> `[B]` sample numbers."""
        return self._number[self._order.sample(position)]


def quotas(weights: list[float]) -> NDArray[np.int64]:
    """How many of `MIXTURE_BLOCK` positions each weight is given: rounded down, what is left over to the largest remainders."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * MIXTURE_BLOCK
    quota = np.floor(exact).astype(np.int64)
    most = np.argsort(quota - exact, kind="stable")[: MIXTURE_BLOCK - quota.sum()]
    quota[most] += 1
    return quota
