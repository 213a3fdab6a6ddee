"""The order at scale: every row of the global batch belongs to a lane, and each lane reads its own part of the shards.

With 2 lanes of 3 rows, positions fall into lanes like this; a lane counts its own *places*:

| | lane 0 | lane 1 |
|-|-|-|
| positions of step 0 | 0 1 2 | 3 4 5 |
| positions of step 1 | 6 7 8 | 9 10 11 |
| places | 0 1 2, 3 4 5 | 0 1 2, 3 4 5 |

An epoch of n samples is the next n positions, whatever n: positions 0 to 7 with n = 8. It gives lane 0 five places and
lane 1 three. The shards of the epoch, in random order, are cut into runs of exactly these lengths, one per lane, so
that every sample comes once per epoch and nothing is left over, repeated or padded. A shard at a cut belongs to two
lanes. A lane shuffles its run window by window. Everything is computed from the position alone.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from mtgen.data.orders.permutation import Order, permute
from mtgen.utils import counter_rng


@dataclass(frozen=True)
class Lanes:
    """How positions fall into lanes: `rows` positions to each of `count` lanes, over and over.

    A global batch of `count * rows` samples has `rows` consecutive rows of each lane.
    """

    count: int = 1
    rows: int = 1

    @property
    def step(self) -> int:
        """Positions after which the first lane follows again: the size of a global batch."""
        return self.count * self.rows

    def lane(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions -> `[B]` lanes."""
        return position // self.rows % self.count

    def place(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions -> `[B]` places within their lanes."""
        return position // self.step * self.rows + position % self.rows

    def position(self, lane: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` lanes and places within them -> `[B]` positions."""
        return (place // self.rows * self.count + lane) * self.rows + place % self.rows

    def places(self, lane: NDArray[np.int64], end: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """`[B]` lanes -> `[B]` number of positions before `end` that are in the lane."""
        return end // self.step * self.rows + np.clip(end % self.step - lane * self.rows, 0, self.rows)

    def places_before(self, lane: NDArray[np.int64], end: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """`[B]` lanes -> `[B]` number of positions before `end` that are in the lanes before it."""
        return lane * (end // self.step * self.rows) + np.minimum(end % self.step, lane * self.rows)

    def of_rows(self, rows: slice) -> range:
        """The lanes of a worker that has these rows of every global batch; a lane may be shared with its neighbors."""
        return range(rows.start // self.rows, -(-rows.stop // self.rows))


class LaneOrder:
    """Every lane reads its own run of the shards, shuffled window by window, differently in every epoch.

    A window has at least `window` samples, unless the whole run is shorter. Time and memory of `sample` do not depend
    on how far a run is.

    Args:
        sizes: number of samples of each shard; the samples of a shard are consecutive in the index.
        lanes: how positions fall into lanes.
        window: samples of a lane that are shuffled together.
        seed: seed of the run.
        purpose: distinguishes several orders with the same seed.

    Attributes:
        reach: number of positions from a sample to one of the next window in the same lane.
    """

    def __init__(self, sizes: NDArray[np.int64], lanes: Lanes, window: int, seed: int, purpose: str = "order") -> None:
        sizes = np.asarray(sizes, dtype=np.int64)
        first, sizes = (np.cumsum(sizes) - sizes)[sizes > 0], sizes[sizes > 0]
        self.n = int(sizes.sum())
        self.lanes = lanes
        self.window = window
        self.seed = seed
        self.purpose = purpose
        if self.n < 1:
            raise ValueError(f"n={self.n}: an order needs at least one sample")
        longest_run = self.n // lanes.count + 2 * lanes.rows
        self._max_windows = longest_run // window + 1
        run = max(self.n // lanes.count, 1)
        steps_per_window = -(-run // (max(run // window, 1) * lanes.rows))
        self.reach = steps_per_window * lanes.step
        shards = Order(len(sizes), seed, f"{purpose} of shards").sample(np.arange(len(sizes)))
        self._first = first[shards]
        self._start = np.cumsum(sizes[shards]) - sizes[shards]
        self._epoch = lru_cache(maxsize=4)(self._epoch_table)

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions since the start of the run -> `[B]` sample numbers in `0..n-1`."""
        position = np.asarray(position, dtype=np.int64)
        epoch, place = self._in_epoch(position)
        samples = np.empty_like(position)
        for e in np.unique(epoch).tolist():
            rows = epoch == e
            first, start = self._epoch(e)
            at = np.searchsorted(start, place[rows], side="right") - 1
            samples[rows] = first[at] + place[rows] - start[at]
        return samples

    def ahead(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` sample numbers one window later in the same lanes."""
        return self.sample(np.asarray(position) + self.reach)

    def _in_epoch(self, position: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch of each position, and which of the epoch's samples is there, counted shard after shard."""
        epoch = position // self.n
        begin, end = epoch * self.n, (epoch + 1) * self.n
        lane = self.lanes.lane(position)
        run_begin = self.lanes.places_before(lane, end) - self.lanes.places_before(lane, begin)
        length = self.lanes.places(lane, end) - self.lanes.places(lane, begin)
        number = self.lanes.place(position) - self.lanes.places(lane, begin)
        # a run of `length` samples has `windows` windows; window w begins at floor(w * length / windows)
        windows = np.maximum(length // self.window, 1)
        window = ((number + 1) * windows - 1) // length
        window_begin = window * length // windows
        size = (window + 1) * length // windows - window_begin
        key = (epoch * self.lanes.count + lane) * self._max_windows + window
        shuffled = permute(self.seed, f"{self.purpose} in lanes", key, number - window_begin, size)
        return epoch, run_begin + window_begin + shuffled

    def _epoch_table(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pieces of shards of an epoch, lane by lane: their first samples, and where they start in the epoch."""
        every = np.arange(self.lanes.count)
        begin, end = epoch * self.n, (epoch + 1) * self.n
        cuts = self.lanes.places_before(every, end) - self.lanes.places_before(every, begin)
        piece = np.unique(np.concatenate([self._start, cuts[cuts < self.n]]))
        shard = np.searchsorted(self._start, piece, side="right") - 1
        first = self._first[shard] + piece - self._start[shard]
        size = np.diff(piece, append=self.n)
        lane = np.searchsorted(cuts, piece, side="right") - 1
        random = counter_rng.bits(self.seed, f"{self.purpose} of shards in lanes", torch.tensor([epoch]), len(piece))
        order = np.lexsort((random[0].numpy(), lane))
        return first[order], np.cumsum(size[order]) - size[order]
