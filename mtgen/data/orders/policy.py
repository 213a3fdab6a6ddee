"""The choice of an order, and the orders it gives for one data set, a mixture and oversampled labels."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtgen.data.orders.interleaved import InterleavedOrder, LabelOversamplingOrder
from mtgen.data.orders.lanes import LaneOrder, Lanes
from mtgen.data.orders.permutation import Order, SampleOrder
from mtgen.data.orders.windowed import WindowedOrder


@dataclass(frozen=True)
class OrderPolicy:
    """How samples are ordered.

    Attributes:
        name: "global", "windowed" or "lanes".
        seed: seed of the run.
        window: of "windowed": shards; of "lanes": samples of a lane.
        lanes: of "lanes".
    """

    name: Literal["global", "windowed", "lanes"]
    seed: int
    window: int = 0
    lanes: Lanes = Lanes()

    def one(self, sizes: NDArray[np.int64], purpose: str = "order") -> SampleOrder:
        """The order of one data set with shards of these numbers of samples."""
        if self.name == "lanes":
            return LaneOrder(sizes, self.lanes, self.window, self.seed, purpose)
        if self.name == "windowed":
            return WindowedOrder(sizes, self.window, self.seed, purpose)
        return Order(int(sizes.sum()), self.seed, purpose)

    def mixed(self, sizes: list[NDArray[np.int64]], weights: list[float]) -> SampleOrder:
        """The order of several data sets, each given by the sizes of its shards, in exact proportions."""
        orders = [
            self._part(weight / sum(weights), shards).one(shards, f"order of {number}")
            for number, (shards, weight) in enumerate(zip(sizes, weights, strict=True))
        ]
        return InterleavedOrder(orders, [int(shards.sum()) for shards in sizes], weights, self.seed, self._outer)

    def oversampled(self, sizes: NDArray[np.int64], labeled: NDArray[np.bool_], fraction: float) -> SampleOrder:
        """The order of one data set in which a fraction of the positions has samples of `labeled` (`[N]` bool)."""
        if self.name != "lanes":
            return LabelOversamplingOrder(labeled, fraction, self.seed)
        bounds = np.concatenate([[0], np.cumsum(sizes)])

        def order_of(group: NDArray[np.bool_], part: float, purpose: str) -> SampleOrder:
            counts = np.array(
                [np.count_nonzero(group[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)], dtype=np.int64
            )
            density = counts.sum() / sizes[counts > 0].sum()  # a window of rare samples spans no more shards
            return self._part(part * density, counts).one(counts, purpose)

        return LabelOversamplingOrder(labeled, fraction, self.seed, order_of, self._outer)

    @property
    def _outer(self) -> Lanes:
        return self.lanes if self.name == "lanes" else Lanes()

    def _part(self, fraction: float, sizes: NDArray[np.int64]) -> "OrderPolicy":
        """The policy of a data set that gets a fraction of a lane, whose windows together are as large as `window`.

        No window is smaller than a shard on average: a shard is fetched whole.
        """
        if self.name != "lanes":
            return self
        shard = int(sizes.sum()) // max(int(np.count_nonzero(sizes)), 1)
        window = max(round(self.window * fraction), min(shard, self.window), 1)
        return replace(self, window=window, lanes=Lanes(self.lanes.count, 1))
