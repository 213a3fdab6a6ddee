"""How long a worker takes for its own work, which tells slow workers from those that wait for them."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MAX_TIMED_PASSES = 64
"""Passes between two reads whose time is kept: enough for a mean, and few events on a GPU."""


class _HostEvent:
    """A moment on the CPU, with the methods of `torch.cuda.Event`."""

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, end: "_HostEvent") -> float:
        return 1000 * (end.seconds - self.seconds)


class ForwardTimer:
    """Times forward passes, which wait for no other worker; backward passes do, for the gradients.

    Args:
        device: "cpu", or "cuda", where events time the passes without a host sync.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._passes: deque[tuple[Any, Any]] = deque(maxlen=MAX_TIMED_PASSES)

    @contextmanager
    def time(self) -> Iterator[None]:
        """Time one pass."""
        begin, end = self._event(), self._event()
        begin.record()
        yield
        end.record()
        self._passes.append((begin, end))

    def read(self) -> float:
        """Mean milliseconds of a pass since the last call, 0 without a pass; waits for the device."""
        passes = list(self._passes)
        self._passes.clear()
        for _, end in passes:
            end.synchronize()
        return sum(float(begin.elapsed_time(end)) for begin, end in passes) / max(len(passes), 1)

    def _event(self) -> Any:
        return torch.cuda.Event(enable_timing=True) if self._cuda else _HostEvent()
