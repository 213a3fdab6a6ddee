"""Computed columns equal the arrays that NumPy would make, however they are read."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data import columns
from mtgen.data.columns import AllRowsBut, BitColumn, ChosenRows, JoinedColumn, LazyColumn, SelectedColumn


@pytest.fixture(autouse=True, scope="module")
def _few_rows_at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "ROWS_AT_ONCE", 4)
        yield


def check(column: LazyColumn, expected: np.ndarray, data: st.DataObject) -> None:
    assert len(column) == len(expected) and column.dtype == expected.dtype
    assert np.array_equal(np.asarray(column), expected)
    assert (column.any(), column.sum()) == (expected.any(), expected.sum())
    begin, end = data.draw(st.integers(0, len(expected) + 2)), data.draw(st.integers(0, len(expected) + 2))
    step = data.draw(st.integers(1, 3))
    assert np.array_equal(column[begin:end:step], expected[begin:end:step])
    if len(expected):
        numbers = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1))), np.int64)
        assert np.array_equal(column[numbers], expected[numbers]) and column.mean() == pytest.approx(expected.mean())
        assert [column[number] for number in numbers.tolist()] == expected[numbers].tolist()
        assert [column[number] for number in numbers] == expected[numbers].tolist()


@given(st.lists(st.tuples(st.integers(-9, 9), st.booleans()), max_size=20), st.data())
def test_selected_rows(values: list[tuple[int, bool]], data: st.DataObject) -> None:
    whole = np.array([value for value, _ in values], np.int32)
    left_out = np.array([left_out for _, left_out in values], np.bool_)
    kept, others = np.flatnonzero(~left_out), np.flatnonzero(left_out)
    for selection in (ChosenRows(kept), AllRowsBut(others, len(whole))):
        check(SelectedColumn(whole, selection), whole[~left_out], data)
        assert [selection.row(number) for number in range(len(selection))] == kept.tolist()
        ends = np.arange(len(whole) + 1)
        assert selection.before(ends).tolist() == np.searchsorted(kept, ends).tolist()


@given(st.lists(st.lists(st.integers(-1, 3), max_size=9), min_size=1, max_size=4), st.data())
def test_joined_columns(parts: list[list[int]], data: st.DataObject) -> None:
    members = [np.array(part, np.int64) for part in parts]
    check(JoinedColumn(members), np.concatenate(members), data)
    tables = [np.array([10 * n, 10 * n + 1, 10 * n + 2, 10 * n + 3, -1]) for n in range(len(members))]
    expected = np.concatenate([table[member] for table, member in zip(tables, members, strict=True)])
    check(
        JoinedColumn([SelectedColumn(m, AllRowsBut(np.empty(0, int), len(m))) for m in members], tables), expected, data
    )


@given(st.lists(st.booleans(), max_size=30), st.data())
def test_bits(values: list[bool], data: st.DataObject) -> None:
    array = np.array(values, np.bool_)
    check(BitColumn(iter([array[begin : begin + 8] for begin in range(0, len(array), 8)])), array, data)
