"""A uniform choice of a stream's rows, in memory that does not grow with their number."""

import torch
from torch import Tensor

from mtgen.utils import counter_rng

MAX_ROWS_KEPT = 10_000
"""Rows that are kept of a stream at most, unless said otherwise."""


class Choice:
    """At most `most` rows of a stream, a uniform choice.

    Which are kept is a function of their positions alone: those with the smallest random numbers. So the choice does not depend on the
    order of the stream, nor on who computed which part of it.

    Attributes:
        count: how many rows came.
    """

    def __init__(self, most: int = MAX_ROWS_KEPT) -> None:
        self.most = most
        self.count = 0
        self._parts: list[tuple[Tensor, ...]] = []
        self._held = 0
        self._limit = 2**63 - 1

    def update(self, *rows: Tensor, position: Tensor | None = None) -> None:
        """Take in tensors `[B,...]` that belong together row by row, at the positions `[B]`; default: those that follow the last."""
        if position is None:
            position = torch.arange(self.count, self.count + len(rows[0]))
        position, self.count = position.cpu(), self.count + len(position)
        lucky = _random_rank(position) <= self._limit
        self._parts.append((position[lucky], *(part.detach().cpu()[lucky] for part in rows)))
        self._held += int(lucky.sum())
        if self._held >= 2 * self.most:
            self._cut()

    def _cut(self) -> None:
        """Keep the `most` with the smallest numbers, in the order of their positions."""
        parts = [torch.cat(part) for part in zip(*self._parts, strict=True)]
        chosen = _random_rank(parts[0]).argsort()[: self.most]
        if len(chosen) == self.most:
            self._limit = int(_random_rank(parts[0])[chosen[-1]])
        chosen = chosen[parts[0][chosen].argsort()]
        self._parts, self._held = [tuple(part[chosen] for part in parts)], len(chosen)

    def __len__(self) -> int:
        """How many are kept."""
        return min(self.count, self.most)

    def rows(self) -> tuple[Tensor, ...]:
        """The positions `[n]` of what is kept, and its tensors `[n,...]`, in the order of the positions; nothing where no row came."""
        if not self._parts:
            return ()
        self._cut()
        return self._parts[0]


def _random_rank(position: Tensor) -> Tensor:
    """`[B]` int64: a random number for each position, always the same."""
    return counter_rng.bits(0, "features", position, 1)[:, 0]
