"""The order that shuffles a few shards at a time, all workers in the same shards."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from mtgen.data.orders.permutation import Order
from mtgen.utils import counter_rng


class WindowedOrder:
    """Shuffle the shards in every epoch, and the samples within each window of `window` consecutive shards.

    An epoch has every sample exactly once, and reads each shard during one window only. Every node reads every shard:
    `LaneOrder` is the order for more than one node.

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
        self._window_size = -(-self.n * window // len(self._sizes))
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

    def ahead(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` sample numbers one window later."""
        return self.sample(np.asarray(position) + self._window_size)

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
