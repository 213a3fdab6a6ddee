"""Columns of an index that are computed when they are read: a part of a data set, or several, without a copy."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

ROWS_AT_ONCE = 1 << 20
"""Rows that are looked at in one operation, so that memory does not grow with the data set."""


class LazyColumn(ABC):
    """`[N]` values that are read with `column[number]`, `column[begin:end]` and `column[numbers]`, as in NumPy.

    Numbers are not negative. `np.asarray` makes an array of all values.
    """

    dtype: np.dtype[Any]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, at: Any) -> Any: ...

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def any(self) -> bool:
        """Whether any value is true."""
        return any(part.any() for part in chunks(self))

    def sum(self) -> int:
        """Sum of all values."""
        return sum(int(part.sum()) for part in chunks(self))

    def mean(self) -> float:
        """Mean of all values."""
        return self.sum() / len(self)


Column = NDArray[Any] | LazyColumn
"""A column in memory, or one that is computed."""


def chunks(column: Column) -> Iterator[NDArray[Any]]:
    """The values of a column, up to `ROWS_AT_ONCE` at a time."""
    for begin in range(0, len(column), ROWS_AT_ONCE):
        yield column[begin : begin + ROWS_AT_ONCE]


class Selection(ABC):
    """Some rows of a table, numbered from 0 in their order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, number: int) -> int:
        """The row with a number."""

    @abstractmethod
    def of(self, column: Column, at: Any) -> Any:
        """The values of the selected rows; for `at` see `LazyColumn`."""

    @abstractmethod
    def before(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` rows -> `[B]` number of selected rows before each."""


class ChosenRows(Selection):
    """Args: `rows`: `[n]` int64, ascending."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> int:
        """The row with a number."""
        return int(self._rows[number])

    def of(self, column: Column, at: Any) -> Any:
        """The values of the selected rows."""
        return column[self._rows[at]]

    def before(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` rows -> `[B]` number of selected rows before each."""
        return np.searchsorted(self._rows, rows).astype(np.int64)


class AllRowsBut(Selection):
    """All rows but a few, with memory for these alone.

    Args:
        left_out: `[n]` int64, ascending.
        total: number of all rows.
    """

    def __init__(self, left_out: NDArray[np.int64], total: int) -> None:
        self._left_out = left_out
        self._total = total
        self._begin = left_out - np.arange(len(left_out))  # number of selected rows before each that is left out
        self._begin_by_number = self._begin.tolist()

    def __len__(self) -> int:
        return self._total - len(self._left_out)

    def row(self, number: int) -> int:
        """The row with a number."""
        return number + bisect_right(self._begin_by_number, number)

    def of(self, column: Column, at: Any) -> Any:
        """The values of the selected rows."""
        if isinstance(at, slice):
            begin, end, step = at.indices(len(self))
            if begin >= end or step != 1:
                return self.of(column, np.arange(begin, end, step))
            rows = slice(self.row(begin), self.row(end - 1) + 1)
            first, last = np.searchsorted(self._left_out, [rows.start, rows.stop])
            return np.delete(column[rows], self._left_out[first:last] - rows.start)
        if not isinstance(at, np.ndarray):
            return column[self.row(int(at))]
        return column[at + np.searchsorted(self._begin, at, side="right")]

    def before(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]` rows -> `[B]` number of selected rows before each."""
        return rows - np.searchsorted(self._left_out, rows)


class SelectedColumn(LazyColumn):
    """The selected rows of a column."""

    def __init__(self, column: Column, selection: Selection) -> None:
        self.dtype = column.dtype
        self._column = column
        self._selection = selection

    def __len__(self) -> int:
        return len(self._selection)

    def __getitem__(self, at: Any) -> Any:
        return self._selection.of(self._column, at)


class JoinedColumn(LazyColumn):
    """Several columns, one after the other.

    Args:
        tables: for each column, a table through which its values go, which are its indices: -1 is the last entry.
    """

    def __init__(self, columns: Sequence[Column], tables: Sequence[NDArray[Any]] | None = None) -> None:
        self.dtype = columns[0].dtype if tables is None else tables[0].dtype
        self._columns = list(columns)
        self._tables = tables
        self._begin = np.cumsum([0, *map(len, columns)])
        self._begin_by_number = self._begin.tolist()

    def __len__(self) -> int:
        return int(self._begin[-1])

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            begin, end, step = at.indices(len(self))
            if step != 1:
                return self[np.arange(begin, end, step)]
            parts = [
                self._of(member, slice(max(begin - first, 0), max(end - first, 0)))
                for member, first in enumerate(self._begin_by_number[:-1])
            ]
            return np.concatenate(parts)
        if not isinstance(at, np.ndarray):
            member = bisect_right(self._begin_by_number, int(at)) - 1
            return self._of(member, int(at) - self._begin_by_number[member])
        members = np.searchsorted(self._begin, at, side="right") - 1
        values = np.empty(at.shape, self.dtype)
        for member in np.unique(members).tolist():
            rows = members == member
            values[rows] = self._of(member, at[rows] - self._begin[member])
        return values

    def _of(self, member: int, at: Any) -> Any:
        values = self._columns[member][at]
        return values if self._tables is None else self._tables[member][values]


class BitColumn(LazyColumn):
    """Booleans, a bit for each.

    Args:
        parts: the values, in parts whose lengths are multiples of 8, but for the last one's.
    """

    def __init__(self, parts: Iterator[NDArray[np.bool_]]) -> None:
        self.dtype = np.dtype(np.bool_)
        self._length = 0
        bits = []
        for part in parts:
            self._length += len(part)
            bits.append(np.packbits(part))
        self._bits = np.concatenate([np.empty(0, np.uint8), *bits])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            begin, end, step = at.indices(self._length)
            first = begin // 8
            values = np.unpackbits(self._bits[first : -(-end // 8)]).view(np.bool_)
            return values[begin - 8 * first : end - 8 * first : step]
        if not isinstance(at, np.ndarray):
            return bool(self._bits[at >> 3] >> (7 - (at & 7)) & 1)
        return (self._bits[at >> 3] >> (7 - (at & 7)).astype(np.uint8) & 1).view(np.bool_)
