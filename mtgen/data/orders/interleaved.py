"""Several orders interleaved in exact proportions: data sets of a mixture, or labeled and unlabeled samples."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mtgen.data.orders.lanes import Lanes
from mtgen.data.orders.permutation import Order, SampleOrder

MIXTURE_BLOCK = 1000
"""Number of places of a lane over which the proportions of a mixture are exact."""

SELECT_BLOCK = 64
"""Samples per entry of the table by which the k-th sample of a group is found."""


class InterleavedOrder:
    """Several orders interleaved in exact proportions within every lane, each with its own epochs.

    In every lane, each block of `MIXTURE_BLOCK` places has the same number of samples of each order (see `quotas`),
    shuffled differently. A lane's k-th sample of an order, over all its blocks, is that of the order's place k in the
    same lane: every order has exact epochs, and a lane reads its own part of every data set's shards.

    Args:
        orders: one per data set, in `lanes.count` lanes of one row each if they are lane orders; the samples of the
            data sets are numbered consecutively.
        sizes: number of samples of each data set.
        weights: positive proportions; only the ratios matter.
        seed: seed of the run.
        lanes: how positions fall into lanes; default: one lane.

    Raises:
        ValueError: a weight is too small for a single sample per block.
    """

    def __init__(
        self,
        orders: list[SampleOrder],
        sizes: list[int],
        weights: list[float],
        seed: int,
        lanes: Lanes = Lanes(),  # noqa: B008 - immutable
    ) -> None:
        self.orders = orders
        self.lanes = lanes
        self.quota = quotas(weights)
        if self.quota.min() < 1:
            raise ValueError(f"a weight is below {1 / MIXTURE_BLOCK:.1%} of their sum")
        self._begin = np.cumsum(self.quota) - self.quota
        self._offset = np.cumsum(sizes) - np.asarray(sizes)
        self._block = Order(MIXTURE_BLOCK, seed, "mixture")

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions since the start of the run -> `[B]` sample numbers of the mixture."""
        return self._of_members(position, lambda order, own: order.sample(own))

    def ahead(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` sample numbers one window later, each in its own data set."""
        return self._of_members(position, lambda order, own: order.ahead(own))

    def _of_members(
        self, position: NDArray[np.int64], call: Callable[[SampleOrder, NDArray[np.int64]], NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        position = np.asarray(position, dtype=np.int64)
        lane, place = self.lanes.lane(position), self.lanes.place(position)
        block, number = place // MIXTURE_BLOCK, place % MIXTURE_BLOCK
        slot = self._block.sample((block * self.lanes.count + lane) * MIXTURE_BLOCK + number)
        member = np.searchsorted(self._begin, slot, side="right") - 1
        own_place = block * self.quota[member] + slot - self._begin[member]
        own_position = Lanes(self.lanes.count, rows=1).position(lane, own_place)
        samples = np.empty_like(position)
        for which, order in enumerate(self.orders):
            rows = member == which
            if rows.any():
                samples[rows] = self._offset[which] + call(order, own_position[rows])
        return samples


class LabelOversamplingOrder:
    """Labeled and unlabeled samples in exact proportions, each group with its own epochs: oversamples rare labels.

    Args:
        labeled: `[N]` bool, with samples of both groups.
        fraction: fraction of the positions that are labeled samples.
        seed: seed of the run.
        order_of: the order of a group: (its `[N]` bool, its fraction of the positions, purpose) -> order of its
            samples, numbered from 0; default: a permutation of the whole group for each epoch.
        lanes: see `InterleavedOrder`.

    Raises:
        ValueError: the fraction leaves one of the groups without a single sample per block.
    """

    def __init__(
        self,
        labeled: NDArray[np.bool_],
        fraction: float,
        seed: int,
        order_of: Callable[[NDArray[np.bool_], float, str], SampleOrder] | None = None,
        lanes: Lanes = Lanes(),  # noqa: B008 - immutable
    ) -> None:
        groups, fractions = [labeled, ~labeled], [fraction, 1 - fraction]
        order_of = order_of or (lambda group, _, purpose: Order(int(np.count_nonzero(group)), seed, purpose))
        orders = [
            order_of(group, part, f"order of {name}")
            for group, part, name in zip(groups, fractions, ("some", "none"), strict=True)
        ]
        self._groups = [_Group(group) for group in groups]
        self._order = InterleavedOrder(orders, [group.size for group in self._groups], fractions, seed, lanes)

    def sample(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` positions since the start of the run -> `[B]` sample numbers."""
        return self._numbers(self._order.sample(position))

    def ahead(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` sample numbers one window later, each in its own group."""
        return self._numbers(self._order.ahead(position))

    def _numbers(self, found: NDArray[np.int64]) -> NDArray[np.int64]:
        some, none = self._groups
        numbers = np.empty_like(found)
        rows = found < some.size
        numbers[rows] = some.select(found[rows])
        numbers[~rows] = none.select(found[~rows] - some.size)
        return numbers


class _Group:
    """Finds the k-th sample of a group with a table of an eighth of a byte per sample (rank and select)."""

    def __init__(self, member: NDArray[np.bool_]) -> None:
        self._member = np.concatenate([member, np.zeros(-len(member) % SELECT_BLOCK, np.bool_)])
        self._before = np.cumsum(self._member.reshape(-1, SELECT_BLOCK).sum(1, dtype=np.int64))
        self.size = int(self._before[-1])
        self._before = np.concatenate([[0], self._before[:-1]])

    def select(self, k: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` numbers within the group -> `[B]` sample numbers."""
        block = np.searchsorted(self._before, k, side="right") - 1
        rank = np.cumsum(self._member.reshape(-1, SELECT_BLOCK)[block], axis=1)
        return block * SELECT_BLOCK + (rank > (k - self._before[block])[:, None]).argmax(axis=1)


def quotas(weights: list[float]) -> NDArray[np.int64]:
    """The number of `MIXTURE_BLOCK` places for each weight, by the largest remainder method."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * MIXTURE_BLOCK
    quota = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(quota - exact, kind="stable")[: MIXTURE_BLOCK - quota.sum()]
    quota[largest_remainders] += 1
    return quota
