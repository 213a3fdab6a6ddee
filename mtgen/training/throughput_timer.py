"""How long a run has trained, and how fast."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Throughput(NamedTuple):
    """The speed between two laps.

    Attributes:
        images_per_second: over all workers.
        data_wait_fraction: fraction of the time in which this worker waited for data.
    """

    images_per_second: float
    data_wait_fraction: float


class ThroughputTimer:
    """Wall-clock seconds of a run, and its speed since the last lap.

    A pause (a snapshot, a checkpoint) counts toward the seconds of the run, but not toward its speed.

    Args:
        seconds: that earlier parts of the run took.
        clock: seconds since any fixed time; it must never be set back.
    """

    def __init__(self, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._earlier = seconds
        self._clock = clock
        self._started = clock()
        self._paused_at = self._started
        self._lap_started = self._started
        self._lap_images = 0
        self._lap_waited = 0.0

    def start(self, images: int, waited: float) -> None:
        """Begin to count, at `images` seen and `waited` seconds waited for data."""
        self._started = self._clock()
        self._begin_lap(self._started, images, waited)

    @property
    def seconds(self) -> float:
        """Seconds of the run, earlier parts and pauses included."""
        return self._earlier + self._clock() - self._started

    def pause(self) -> None:
        """Begin a pause; pauses do not nest."""
        self._paused_at = self._clock()

    def resume(self) -> float:
        """End the pause; returns how many seconds it took."""
        paused = self._clock() - self._paused_at
        self._lap_started += paused
        return paused

    def lap(self, images: int, waited: float) -> Throughput:
        """Return the speed since the last lap, or since `start`, and begin the next lap.

        Args:
            images: seen since the start of the run.
            waited: seconds that this worker has waited for data so far.
        """
        now = self._clock()
        seconds = max(now - self._lap_started, 1e-9)
        speed = Throughput((images - self._lap_images) / seconds, (waited - self._lap_waited) / seconds)
        self._begin_lap(now, images, waited)
        return speed

    def _begin_lap(self, now: float, images: int, waited: float) -> None:
        self._lap_started = now
        self._lap_images = images
        self._lap_waited = waited
