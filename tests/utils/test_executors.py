"""Work in one process or several: results in order, and never more at once than was asked for."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mtgen.utils.executors import bounded_map, process_pool


def test_one_process_is_this_one_and_raises_at_once() -> None:
    prepared: list[str] = []
    with process_pool(1, prepared.append, ("here",)) as pool:
        assert list(bounded_map(pool, str, range(3), 1)) == ["0", "1", "2"] and prepared == ["here"]
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0)


@pytest.mark.parametrize("ahead", [1, 3])
def test_few_calls_are_ahead_of_the_one_that_is_waited_for(ahead: int) -> None:
    begun, most, lock, taken = 0, 0, threading.Lock(), 0

    def work(number: int) -> int:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        return number

    with ThreadPoolExecutor(8) as pool:
        found = []
        for number in bounded_map(pool, work, range(50), ahead):
            found.append(number)
            taken += 1
    assert found == list(range(50)) and most <= ahead
