"""A uniform subsample of a stream's rows, of bounded size."""

import torch
from torch import Tensor

from mtgen.evaluation.collectors.base import State
from mtgen.utils import counter_rng

MAX_ROWS_KEPT = 10_000
"""Default size of a subsample, rows."""


class UniformSubsample:
    """At most `size` rows of a stream, drawn uniformly.

    Each position has a fixed random number, and the rows with the smallest numbers are kept. The subsample is therefore
    independent of the order of the stream, and of which worker computed which part of it.

    Attributes:
        count: number of rows seen.
    """

    def __init__(self, size: int = MAX_ROWS_KEPT) -> None:
        self.size = size
        self.count = 0
        self._parts: list[tuple[Tensor, ...]] = []
        self._held = 0
        self._limit = 2**63 - 1

    def update(self, *rows: Tensor, position: Tensor | None = None) -> None:
        """Take in tensors `[B,...]` whose rows belong together, at the positions `[B]`; default: the next ones."""
        if position is None:
            position = torch.arange(self.count, self.count + len(rows[0]))
        position, self.count = position.cpu(), self.count + len(position)
        candidate = _random_number(position) <= self._limit
        self._parts.append((position[candidate], *(part.detach().cpu()[candidate] for part in rows)))
        self._held += int(candidate.sum())
        if self._held >= 2 * self.size:
            self._cut()

    def _cut(self) -> None:
        """Keep the `size` rows with the smallest numbers, in the order of their positions."""
        parts = [torch.cat(part) for part in zip(*self._parts, strict=True)]
        chosen = _random_number(parts[0]).argsort()[: self.size]
        if len(chosen) == self.size:
            self._limit = int(_random_number(parts[0])[chosen[-1]])
        chosen = chosen[parts[0][chosen].argsort()]
        self._parts = [tuple(part[chosen] for part in parts)]
        self._held = len(chosen)

    def __len__(self) -> int:
        """The number of rows in the subsample."""
        return min(self.count, self.size)

    def rows(self) -> tuple[Tensor, ...]:
        """The positions `[n]` and the tensors `[n,...]`, by position; an empty tuple where no row was seen."""
        if not self._parts:
            return ()
        self._cut()
        return self._parts[0]

    def state_dict(self) -> State:
        """The count and the candidates."""
        return {"count": self.count, "limit": self._limit, "parts": [list(part) for part in self._parts]}

    def load_state_dict(self, state: State) -> None:
        """Restore the count and the candidates."""
        self.count = state["count"]
        self._limit = state["limit"]
        self._parts = [tuple(part) for part in state["parts"]]
        self._held = sum(len(part[0]) for part in self._parts)


def _random_number(position: Tensor) -> Tensor:
    """`[B]` int64: the fixed random number of each position."""
    return counter_rng.bits(0, "features", position, 1)[:, 0]
