"""When something periodic happens, counted in images."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.training.progress import FULL_ROWS, RunProgress

whole = st.integers(1, 1000)


def images_at(batch_size: int, every: int, total: int, name: str) -> list[int]:
    """Images after the steps for which a method says yes."""
    progress, found = RunProgress(total), []
    while not progress.finished:
        progress.advance(batch_size)
        if getattr(progress, name)(every):
            found.append(progress.images)
    return found


def test_every_multiple_is_passed_at_the_step_that_reaches_it() -> None:
    assert images_at(48, 100, 300, "passed") == [144, 240, 336]
    assert images_at(50, 100, 300, "passed") == [100, 200, 300]


def test_what_is_due_happens_at_the_end_too() -> None:
    assert images_at(48, 100, 260, "due") == [144, 240, 288]
    assert images_at(16, 10**9, 32, "due") == [32]


@given(whole, whole, st.integers(1, 2000))
def test_no_multiple_is_missed_and_each_counts_once(batch_size: int, every: int, total: int) -> None:
    found = images_at(batch_size, every, total, "passed")
    last = -(-total // batch_size) * batch_size
    assert [images // every for images in found] == sorted(
        {step // every for step in range(batch_size, last + 1, batch_size)} - {0}
    )


def test_a_step_counts_once() -> None:
    progress = RunProgress(100, images=32, steps=2)
    progress.advance(16)
    assert (progress.images, progress.steps, progress.previous_images) == (48, 3, 32)


def rows_of(every: int, batch: int, steps: int) -> list[int]:
    progress, found = RunProgress(steps * batch), []
    for _ in range(steps):
        progress.advance(batch)
        if progress.row_due(every):
            found.append(progress.images)
    return found


@pytest.mark.parametrize(("every", "batch"), [(10, 10), (1, 10), (30, 10)])
def test_a_long_run_has_rows_at_intervals_that_double_with_its_length(every: int, batch: int) -> None:
    interval = max(every, batch)
    found = rows_of(every, batch, 4 * FULL_ROWS * interval // batch)
    assert found[: FULL_ROWS - 1] == [interval * (n + 1) for n in range(FULL_ROWS - 1)]
    assert found[-1] == 4 * FULL_ROWS * interval
    assert {b - a for a, b in zip(found[FULL_ROWS:], found[FULL_ROWS + 1 :], strict=False)} == {
        2 * interval,
        4 * interval,
    }
    assert len(found) <= 2 * FULL_ROWS
