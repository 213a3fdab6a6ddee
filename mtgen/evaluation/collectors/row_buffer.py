"""Every row of a stream, for metrics that need small vectors of all samples at once."""

import torch
from torch import Tensor

from mtgen.evaluation.collectors.base import State


class RowBuffer:
    """Rows of several tensors that belong together, on the CPU."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []

    def append(self, *columns: Tensor) -> None:
        """Add tensors `[B,...]` of equal length."""
        self._parts.append(tuple(column.cpu() for column in columns))

    def __len__(self) -> int:
        """The number of rows."""
        return sum(len(part[0]) for part in self._parts)

    def columns(self) -> tuple[Tensor, ...]:
        """Each tensor with all rows, `[n,...]`; an empty tuple where nothing was added."""
        return tuple(torch.cat(column) for column in zip(*self._parts, strict=True))

    def state_dict(self) -> State:
        """All columns."""
        return {"columns": list(self.columns())}

    def load_state_dict(self, state: State) -> None:
        """Restore all columns."""
        self._parts = [tuple(state["columns"])] if state["columns"] else []
