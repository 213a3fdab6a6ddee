"""Functions run in this process or in several others, behind one interface."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")


class InProcessExecutor(Executor):
    """Runs each function in this process when it is submitted; its errors are raised at once."""

    def submit(self, fn: Callable[P, B], /, *args: P.args, **kwargs: P.kwargs) -> Future[B]:
        """Run a function; returns a future that is done."""
        future: Future[B] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def process_pool(
    processes: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[Executor]:
    """An executor of several processes, or of this one. At an error, the processes end in the middle of their work.

    Args:
        processes: number of processes; 1: this one alone.
        initializer: called with `initargs` in each process first.
    """
    if processes == 1:
        if initializer is not None:
            initializer(*initargs)
        yield InProcessExecutor()
        return
    context, earlier = multiprocessing.get_context("forkserver"), set(multiprocessing.active_children())
    environment = dict(os.environ)  # the server that forks processes has that of its own start
    with ProcessPoolExecutor(processes, context, _begin, (environment, initializer, initargs)) as pool:
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - earlier:
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(environment: dict[str, str], initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    if initializer is not None:
        initializer(*initargs)


def bounded_map(pool: Executor, work: Callable[[A], B], items: Iterable[A], ahead: int) -> Iterator[B]:
    """`pool.map`, with at most `ahead` calls that are not yielded."""
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
