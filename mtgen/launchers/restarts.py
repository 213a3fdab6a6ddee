"""How often lost workers are replaced: as a rate, which the progress of the run resets."""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from mtgen.checkpointing.checkpoint import checkpoint_folders


def newest_checkpoint(folder: Path) -> int:
    """Images of the newest checkpoint of the run in `folder`, good or not; -1 without one."""
    return max((int(path.name) for path in checkpoint_folders(folder / "checkpoints")), default=-1)


class RestartBudget:
    """Allows a number of restarts within a time, counted from the last new checkpoint.

    A run of weeks on many nodes loses some of them, and continues; a run that makes no progress ends.

    Args:
        limit: `train.max_restarts`.
        minutes: `train.restart_window`.
        progress: a number that grows with the run.
        clock: seconds since any fixed time.
    """

    def __init__(
        self, limit: int, minutes: float, progress: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._seconds = 60 * minutes
        self._progress = progress
        self._clock = clock
        self._reached = progress()
        self._failures: deque[float] = deque()

    def spend(self) -> bool:
        """Count a failure; whether the run may be restarted."""
        now, reached = self._clock(), self._progress()
        if reached > self._reached:
            self._failures.clear()
        self._reached = reached
        while self._failures and now - self._failures[0] >= self._seconds:
            self._failures.popleft()
        self._failures.append(now)
        return len(self._failures) <= self._limit
