"""How all workers interrupt training before the same step, although between requests they exchange nothing.

A message per step to all workers would cost a ring of 2 (W - 1) hops on the thread that starts kernels. Instead, a
thread of each worker looks for a request in the store of the process group, and a step compares one flag.

Why all agree: a worker that is about to begin step u has finished step u - 2, whose gradients are reduced over all
workers, so all have begun step u - 2 (`StepFence` bounds how far the host may be ahead of its GPU).

1. A worker requests an interrupt. The thread of each worker sees it, raises that worker's flag and counts it. From its
   next step on, the worker looks for the number of the last step in the store before each step.
2. When all are counted, a worker that is about to begin step s sets that number to s + 2. Nobody has begun step s + 2,
   and who is about to has finished step s, so the number was set before and is found.

A slow worker delays the second part, and cannot miss it. A worker whose data end before step s + 2 knows that before
step s (`LOOK_AHEAD_STEPS`), and waits there until all are counted.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from mtgen.utils.periodic import Periodic

LOOK_AHEAD_STEPS = 2
"""Steps between setting the number of the last step and that step: workers differ by at most two steps."""

POLL_SECONDS = 0.5
"""Seconds between two looks into the store, in a thread: 1,024 workers ask 2,048 times per second."""

_DECISION_SECONDS = 0.02

_numbers = itertools.count()
"""All workers make their agreements in the same order, so the same number names the same keys."""


class InterruptAgreement:
    """Finds the step before which all workers interrupt training; a context manager.

    Args:
        wanted: whether this worker requests an interrupt; called in a thread.
        rank, world: this worker's number, and the number of workers.
    """

    def __init__(self, wanted: Callable[[], bool], rank: int, world: int) -> None:
        self._wanted = wanted
        self._first, self._world = rank == 0, world
        self._round = 0
        self._raised = False
        self._last: int | None = None
        self._lock = threading.Lock()
        self._looks = Periodic(POLL_SECONDS, self._watch, "interrupts")
        # a connection of its own: the thread must not wait for others that use the group's
        store: Any = dist.distributed_c10d._get_default_store()
        prefix = f"mtgen/interrupts/{next(_numbers)}"
        self._store: Any = dist.PrefixStore(prefix, store.clone())  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        if self._world > 1:
            self._looks.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._looks.stop()

    def due(self, step: int, data_end: bool = False) -> bool:
        """Whether all workers interrupt training before `step`; called before each step.

        Args:
            data_end: whether this worker has data for this step and the next, and none for the one after them.
        """
        if self._world == 1:
            if data_end:
                self._last = step + LOOK_AHEAD_STEPS
            return step == self._last or self._wanted()
        if data_end:
            self._request_and_wait()
        if not self._raised:
            return False
        if (data_end or self._first) and self._all_counted():
            self._set_last(step + LOOK_AHEAD_STEPS)
        last = self._key("last")
        return bool(self._store.check([last])) and step >= int(self._store.get(last))

    def reset(self) -> None:
        """Forget the last request: training continues; on all workers, before the same step."""
        with self._lock:
            self._round += 1
            self._raised = False

    def _key(self, name: str) -> str:
        return f"{self._round}/{name}"

    def _request_and_wait(self) -> None:
        self._store.set(self._key("requested"), "1")
        while not (self._raised and self._all_counted()):
            time.sleep(_DECISION_SECONDS)

    def _all_counted(self) -> bool:
        return bool(self._store.add(self._key("seen"), 0) == self._world)

    def _set_last(self, step: int) -> None:
        """Set the last step unless there is one; a worker without data lowers that of one which is ahead of it."""
        last = self._key("last")
        if int(self._store.compare_set(last, "", str(step))) > step:
            self._store.set(last, str(step))

    def _watch(self) -> None:
        try:
            self._look()
        except dist.DistError:  # the first worker, which has the store, is lost: Ray ends this one too
            self._looks.end()

    def _look(self) -> None:
        with self._lock:
            if self._raised:
                return
            requested = self._key("requested")
            if self._wanted():
                self._store.set(requested, "1")
            if self._store.check([requested]):
                self._raised = True  # before it is counted: this worker looks before its next step
                self._store.add(self._key("seen"), 1)


class StepFence:
    """Keeps the host at most one step ahead of its GPU, which therefore always has the next step's work."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._begun: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Wait, before a step, until the last but one is finished on the device."""
        if len(self._begun) == LOOK_AHEAD_STEPS:
            self._begun.popleft().synchronize()

    def record(self) -> None:
        """Mark the end of a step."""
        if self._cuda:
            event = torch.cuda.Event(blocking=True)
            event.record()
            self._begun.append(event)
