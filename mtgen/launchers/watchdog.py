"""A worker that hangs is told from one that is busy, named, and killed: then Ray Train replaces it, as any worker that was lost."""

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
    """Who hangs: a worker whose beat has stopped, or those with the fewest steps where none is made and nobody is busy.

    Args:
        seconds: without a beat, or without a step, before somebody is said to hang.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._beaten: dict[tuple[int, float], tuple[int, float]] = {}
        self._steps: list[tuple[int, float, int]] = []
        self._moved = 0.0

    def find_hung(self, beats: list[HeartbeatRecord], now: float) -> list[HeartbeatRecord]:
        """Those that hang.

        Args:
            beats: the last of each worker whose process is not known to have ended.
            now: by a clock of this process that is never set back: what the workers' clocks say does not matter.
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
    """Looks at the workers' beats, from a thread of its own, and kills those that hang.

    Args:
        folder: the run's.
        seconds: as `train.heartbeat_timeout`.
        kill: ends a worker's process, wherever it runs; whether it was there. `TimeoutError`: nobody knows yet, and it is tried again.
        say: is told who hung.
    """

    def __init__(
        self, folder: Path, seconds: float, kill: Callable[[HeartbeatRecord], bool], say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._judge = HangDetector(seconds)
        self._kill = kill
        self._say = say
        self._gone: set[tuple[int, float]] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hang", daemon=True)

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder / HEARTBEAT_FOLDER, ignore_errors=True)  # of workers that are no more
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
        """Kill those that hang now."""
        beats = [beat for beat in read_heartbeats(self._folder) if (beat.pid, beat.born) not in self._gone]
        for beat in self._judge.find_hung(beats, now):
            try:
                there = self._kill(beat)
            except TimeoutError:
                continue
            self._gone.add((beat.pid, beat.born))
            if there:
                at = f" (while {beat.busy})" if beat.busy else ""
                self._say(
                    f"warning: worker {beat.rank} (process {beat.pid}) made no step for {self._judge.seconds:g} s after {beat.steps:,} "
                    f"steps{at} (train.heartbeat_timeout): it was killed, and the run goes on from the last checkpoint"
                )


def end_process(pid: int, born: float) -> bool:
    """Kill a process of this machine, if it is still the one that was started then."""
    try:
        if abs(psutil.Process(pid).create_time() - born) > 1:
            return False
        os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True
