"""Work that a thread repeats at intervals."""

import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Periodic:
    """Calls a function at once and then at intervals, in a thread of its own; a context manager.

    An error does not end the thread. Its traceback is printed, once for each message, and the calls continue.

    Args:
        interval: seconds between the end of a call and the next call.
        function: what is called; it may call `end`.
        name: of the thread.
    """

    def __init__(self, interval: float, function: Callable[[], None], name: str) -> None:
        self._interval = interval
        self._function = function
        self._printed: set[str] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to call the function."""
        self._thread.start()

    def end(self) -> None:
        """Make no further call; returns at once."""
        self._end.set()

    def stop(self) -> None:
        """Make no further call, and wait for one in progress."""
        self.end()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self._function()
            except Exception as error:  # noqa: BLE001 - a watching thread must outlive what it meets
                self._print(error)
            self._end.wait(self._interval)

    def _print(self, error: Exception) -> None:
        if (text := repr(error)) not in self._printed:
            self._printed.add(text)
            print(f"warning: the thread {self._thread.name!r} met an error, and continues:", file=sys.stderr)
            traceback.print_exception(error, file=sys.stderr)
