"""Detects workers that hang, tells them from busy ones, and kills them; Ray Train then replaces them."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from mtgen.training.heartbeat import HEARTBEAT_FOLDER, HEARTBEAT_SECONDS, HeartbeatRecord, read_heartbeats


class HangDetector:
    """Finds hung workers.

    A worker hangs if its heartbeat has stopped. If no worker makes a step and none is busy, those with the fewest steps
    hang.

    Args:
        seconds: time without a heartbeat, or without a step of any worker, after which workers count as hung.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._beaten: dict[tuple[int, float], tuple[int, float]] = {}
        self._steps: list[tuple[int, float, int]] = []
        self._moved = 0.0

    def find_hung(self, beats: list[HeartbeatRecord], now: float) -> list[HeartbeatRecord]:
        """The latest heartbeats of hung workers.

        Args:
            beats: latest heartbeat of each worker whose process is not known to have ended.
            now: seconds of a monotonic clock of this process; the workers' clocks do not matter.
        """
        for beat in beats:
            number, _ = self._beaten.get((beat.pid, beat.born), (-1, 0.0))
            if beat.number != number:
                self._beaten[beat.pid, beat.born] = beat.number, now
        steps = [(beat.pid, beat.born, beat.steps) for beat in beats]
        if steps != self._steps or any(beat.busy for beat in beats):
            self._steps, self._moved = steps, now
        if silent := [beat for beat in beats if now - self._beaten[beat.pid, beat.born][1] >= self.seconds]:
            return silent
        if now - self._moved < self.seconds:
            return []
        return [beat for beat in beats if beat.steps == min(other.steps for other in beats)]


class HangWatchdog:
    """Checks the workers' heartbeats in a thread and kills workers that hang.

    Args:
        folder: folder of the run.
        seconds: `train.heartbeat_timeout`.
        kill: kills a worker's process on its node and returns whether it existed; `TimeoutError`: unknown, try again.
        say: prints a line about each killed worker.
    """

    def __init__(
        self, folder: Path, seconds: float, kill: Callable[[HeartbeatRecord], bool], say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._detector = HangDetector(seconds)
        self._kill = kill
        self._say = say
        self._gone: set[tuple[int, float]] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hang", daemon=True)

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder / HEARTBEAT_FOLDER, ignore_errors=True)  # of earlier workers
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            self.check(time.monotonic())

    def check(self, now: float) -> None:
        """Kill the workers that hang at the time `now`."""
        beats = [beat for beat in read_heartbeats(self._folder) if (beat.pid, beat.born) not in self._gone]
        for beat in self._detector.find_hung(beats, now):
            try:
                there = self._kill(beat)
            except TimeoutError:
                continue
            self._gone.add((beat.pid, beat.born))
            if there:
                at = f" (while {beat.busy})" if beat.busy else ""
                self._say(
                    f"warning: worker {beat.rank} (process {beat.pid}) made no step for {self._detector.seconds:g} s "
                    f"after {beat.steps:,} steps{at} (train.heartbeat_timeout): it was killed, and the run resumes "
                    "from the last checkpoint"
                )


def end_process(pid: int, born: float) -> bool:
    """Kill a process of this system if it started at the time `born`; return whether it did."""
    try:
        if abs(psutil.Process(pid).create_time() - born) > 1:
            return False
        os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True
