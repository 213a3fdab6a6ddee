"""Detects workers that hang, tells them from busy ones, and kills them; Ray Train then replaces them.

Before a worker is killed, the stacks of all workers are written to the run's folder, and the worker that is missing in
the collective in which the others wait is named.
"""

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from mtgen.training.heartbeat import HEARTBEAT_FOLDER, HEARTBEAT_SECONDS, HeartbeatRecord, read_heartbeats
from mtgen.training.stacks import where
from mtgen.utils.periodic import Periodic

STACKS_FILE = "stacks-%Y%m%d-%H%M%S.txt"
"""In the run's folder: messages about hung workers, and the stacks of all workers at that time."""

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


@dataclass(frozen=True)
class Hang:
    """A hung worker.

    Attributes:
        beat: its latest heartbeat.
        reason: how it was found.
    """

    beat: HeartbeatRecord
    reason: str


def missing(beat: HeartbeatRecord, beats: Sequence[HeartbeatRecord]) -> str:
    """In which collective of others a worker is missing; "" if it is missing in none."""
    if not (ahead := sum(other.collectives > beat.collectives for other in beats)):
        return ""
    who = f"the {ahead} other workers have" if ahead > 1 else "the other worker has"
    if ahead < len(beats) - 1:
        who = f"{ahead} of {len(beats) - 1} other workers have"
    return f"it did not enter collective {beat.collectives + 1:,}, in step {beat.steps + 1:,}, which {who} entered"


class HangDetector:
    """Finds hung workers.

    A worker hangs if its heartbeat has stopped, or if it is busy with one phase for longer than the phase's limit. If
    no worker makes a step and none is busy, those hang that have entered the fewest collectives; if all have entered
    the same number, none is missing, and the first one stands for all of them.

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

    def find_hung(self, beats: list[HeartbeatRecord], now: float) -> list[Hang]:
        """The hung workers.

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
            return [Hang(beat, f"it was busy for longer than {self.limits[beat.busy]:g} s") for beat in stuck]
        if silent := [beat for beat in beats if now - self._beaten[beat.pid, beat.born][1] >= self.seconds]:
            stopped = "its heartbeat stopped"
            return [Hang(beat, ", and ".join(filter(None, [stopped, missing(beat, beats)]))) for beat in silent]
        if not beats or now - self._moved < self.seconds:
            return []
        return self._behind(beats)

    def _behind(self, beats: list[HeartbeatRecord]) -> list[Hang]:
        """The workers that are behind the others, or the first worker if none is."""
        fewest = min((beat.steps, beat.collectives) for beat in beats)
        behind = [beat for beat in beats if (beat.steps, beat.collectives) == fewest]
        if len(behind) < len(beats):
            return [Hang(beat, missing(beat, beats) or "it is behind the other workers") for beat in behind]
        if len(beats) == 1:
            return [Hang(beats[0], "it is the only worker")]
        count = f"all {len(beats)} workers have entered {fewest[1]:,} collectives, so none is missing"
        return [Hang(beats[0], f"{count}; look at the network between them (NCCL_DEBUG=INFO)")]

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
        stacks: the stacks of each of these workers, or why there are none.
        say: prints a line about each killed worker, and about what the run waits for.
        waiting: says what a run without workers waits for; called once a minute.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float,
        limits: dict[str, float],
        kill: Callable[[HeartbeatRecord], bool],
        stacks: Callable[[Sequence[HeartbeatRecord]], Sequence[str]],
        say: Callable[[str], None],
        waiting: Callable[[], str] = lambda: "waiting for workers",
    ) -> None:
        self._folder = folder
        self._detector = HangDetector(seconds, limits)
        self._kill = kill
        self._stacks = stacks
        self._say = say
        self._waiting = waiting
        self._alive = time.monotonic()
        self._gone: set[tuple[int, float]] = set()
        self._messages: dict[tuple[int, float], str] = {}
        self._checks = Periodic(HEARTBEAT_SECONDS, lambda: self.check(time.monotonic()), "hang")

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder / HEARTBEAT_FOLDER, ignore_errors=True)  # of earlier workers
        self._checks.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checks.stop()

    def check(self, now: float) -> None:
        """Kill the workers that hang at the time `now`, and say once a minute that there are none."""
        beats = [beat for beat in read_heartbeats(self._folder) if (beat.pid, beat.born) not in self._gone]
        if beats:
            self._alive = now
        elif now - self._alive >= WAITING_SECONDS:
            self._alive = now
            self._say(self._waiting())
        hung = self._detector.find_hung(beats, now)
        if any((hang.beat.pid, hang.beat.born) not in self._messages for hang in hung):
            self._record(hung, beats, now)
        for hang in hung:
            beat = hang.beat
            try:
                there = self._kill(beat)
            except TimeoutError:
                continue
            self._gone.add((beat.pid, beat.born))
            if there:
                self._say(self._messages[beat.pid, beat.born])

    def _record(self, hung: list[Hang], beats: list[HeartbeatRecord], now: float) -> None:
        """Write the stacks of all workers to the run's folder, and keep a message about each hung one."""
        texts = dict(zip([beat.rank for beat in beats], self._stacks(beats), strict=True))
        path = self._folder / time.strftime(STACKS_FILE)
        messages = [self._message(hang, texts[hang.beat.rank], now) for hang in hung]
        parts = [
            f"worker {beat.rank} ({beat.place}, process {beat.pid}): {beat.busy or 'training'}, "
            f"after {beat.steps:,} steps and {beat.collectives:,} collectives\n\n{texts[beat.rank]}"
            for beat in beats
        ]
        try:
            path.write_text("\n".join([*messages, "", *parts]), encoding="utf-8")
            written = f"the stacks of all workers are in {path}"
        except OSError as error:
            written = f"{path}: the stacks of all workers could not be written ({error.strerror})"
        for hang, message in zip(hung, messages, strict=True):
            self._messages[hang.beat.pid, hang.beat.born] = f"{message}; {written}"

    def _message(self, hang: Hang, stacks: str, now: float) -> str:
        """What is said about a hung worker.

        Args:
            stacks: of its process, or why there are none.
        """
        beat = hang.beat
        at = f" (while {beat.busy})" if beat.busy else ""
        is_stuck = self._detector.is_stuck(beat, now)
        seconds = self._detector.limits[beat.busy] if is_stuck else self._detector.seconds
        setting = "" if is_stuck else " (train.heartbeat_timeout)"
        place = where(stacks, beat.thread)
        found = f"it was in {place}" if place else stacks.partition("\n")[0]
        return (
            f"warning: worker {beat.rank} ({beat.place}, process {beat.pid}) made no step for {seconds:g} s "
            f"after {beat.steps:,} steps{at}{setting}: it was killed, and the run resumes "
            f"from the last checkpoint; {hang.reason}; {found}"
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
