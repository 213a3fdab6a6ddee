"""Detects workers that hang, tells them from busy ones, and kills them; Ray Train then replaces them."""

import math
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

WAITING_SECONDS = 60.0
"""Seconds between two lines about what a run without workers waits for."""


def phase_limits(patience: float) -> dict[str, float]:
    """Longest seconds for which a worker may be busy with what takes long, by what it reports in its heartbeat.

    Phases that have limits of their own (a snapshot, which is limited by the group's timeout) or none (waiting for more
    workers) are not listed.

    Args:
        patience: `data.patience`, after which a worker that waits for data ends by itself.
    """
    return {"starting": 1800.0, "waiting for data": patience + 600, "writing a checkpoint": 1800.0, "ending": 3600.0}


class HangDetector:
    """Finds hung workers.

    A worker hangs if its heartbeat has stopped, or if it is busy with one phase for longer than the phase's limit. If
    no worker makes a step and none is busy, those with the fewest steps hang.

    Args:
        seconds: time without a heartbeat, or without a step of any worker, after which workers count as hung.
        limits: phase -> longest seconds, see `phase_limits`.
    """

    def __init__(self, seconds: float, limits: dict[str, float]) -> None:
        self.seconds = seconds
        self.limits = limits
        self._phases: dict[tuple[int, float], tuple[str, int, float]] = {}
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
        if stuck := [beat for beat in beats if self.is_stuck(beat, now)]:
            return stuck
        if silent := [beat for beat in beats if now - self._beaten[beat.pid, beat.born][1] >= self.seconds]:
            return silent
        if now - self._moved < self.seconds:
            return []
        return [beat for beat in beats if beat.steps == min(other.steps for other in beats)]

    def is_stuck(self, beat: HeartbeatRecord, now: float) -> bool:
        """Whether a worker has been busy with its phase for longer than the phase's limit."""
        return self._in_phase(beat, now) >= self.limits.get(beat.busy, math.inf)

    def _in_phase(self, beat: HeartbeatRecord, now: float) -> float:
        """Seconds for which a worker has been in its present phase at its present step."""
        phase, steps, since = self._phases.get((beat.pid, beat.born), ("", -1, now))
        if (phase, steps) != (beat.busy, beat.steps):
            since = now
        self._phases[beat.pid, beat.born] = beat.busy, beat.steps, since
        return now - since


class HangWatchdog:
    """Checks the workers' heartbeats in a thread and kills workers that hang.

    Args:
        folder: folder of the run.
        seconds: `train.heartbeat_timeout`.
        limits: see `phase_limits`.
        kill: kills a worker's process on its node and returns whether it existed; `TimeoutError`: unknown, try again.
        say: prints a line about each killed worker, and about what the run waits for.
        waiting: says what a run without workers waits for; called once a minute.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float,
        limits: dict[str, float],
        kill: Callable[[HeartbeatRecord], bool],
        say: Callable[[str], None],
        waiting: Callable[[], str] = lambda: "waiting for workers",
    ) -> None:
        self._folder = folder
        self._detector = HangDetector(seconds, limits)
        self._kill = kill
        self._say = say
        self._waiting = waiting
        self._alive = time.monotonic()
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
        """Kill the workers that hang at the time `now`, and say once a minute that there are none."""
        beats = [beat for beat in read_heartbeats(self._folder) if (beat.pid, beat.born) not in self._gone]
        if beats:
            self._alive = now
        elif now - self._alive >= WAITING_SECONDS:
            self._alive = now
            self._say(self._waiting())
        for beat in self._detector.find_hung(beats, now):
            try:
                there = self._kill(beat)
            except TimeoutError:
                continue
            self._gone.add((beat.pid, beat.born))
            if there:
                at = f" (while {beat.busy})" if beat.busy else ""
                stuck = self._detector.is_stuck(beat, now)
                seconds = self._detector.limits[beat.busy] if stuck else self._detector.seconds
                setting = "" if stuck else " (train.heartbeat_timeout)"
                self._say(
                    f"warning: worker {beat.rank} (process {beat.pid}) made no step for {seconds:g} s "
                    f"after {beat.steps:,} steps{at}{setting}: it was killed, and the run resumes "
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
