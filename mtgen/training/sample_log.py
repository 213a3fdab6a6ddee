"""The sample log: the positions that each worker trained on, and the history that they add up to.

A segment is the part of a run from one start of its workers to the next. `RUN/consumed/000002-1.jsonl` is the log of
the third segment's second worker: one line `{"from": images}`, then, after each step, one line
`{"time": seconds since 1970, "positions": [...]}`.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mtgen.errors import TrainingError

SAMPLE_LOG_FOLDER = "consumed"


class SampleLog:
    """Logs the positions of each step of one worker. What a full disk refuses is written again at the next step.

    Args:
        folder: the run's.
        segment: number of this segment, the same for all workers: the first worker's `next_segment`.
        rank: of the worker.
        images: position at which the segment begins.

    Raises:
        TrainingError: the log cannot be created.
    """

    def __init__(self, folder: Path, segment: int, rank: int, images: int) -> None:
        path = folder / SAMPLE_LOG_FOLDER / f"{segment:06d}-{rank}.jsonl"
        try:
            path.parent.mkdir(exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise TrainingError(
                f"{path}: cannot be written ({error.strerror}); free disk space or fix the folder's permissions, "
                "or set train.log_samples=false"
            ) from error
        self._waiting = b""
        self._write({"from": images})

    def step(self, positions: Tensor) -> None:
        """Log a completed step over the samples at `[B]` positions."""
        self._write({"time": round(time.time(), 3), "positions": positions.tolist()})

    def _write(self, line: dict[str, Any]) -> None:
        self._waiting += json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._waiting = self._waiting[os.write(self._file, self._waiting) :]


def next_segment(folder: Path) -> int:
    """Number of the segment that begins now."""
    return 1 + max((segment for segment, _, _ in _files(folder)), default=-1)


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """Segment, rank and path of every file of the log, in order."""
    names = ((path.stem.split("-"), path) for path in (folder / SAMPLE_LOG_FOLDER).glob("[0-9]*-[0-9]*.jsonl"))
    return sorted((int(segment), int(rank), path) for (segment, rank), path in names)


@dataclass
class LogSegment:
    """What was trained on between a start of the workers and their end.

    Attributes:
        number: of the segment, counted from 0.
        begin: position at which the segment begins.
        steps: (seconds since 1970, positions of one worker) of every step whose line is complete.
    """

    number: int
    begin: int
    steps: list[tuple[float, list[int]]] = field(default_factory=list)


def read_segments(folder: Path) -> list[LogSegment]:
    """All segments of a run, in order; one whose workers were killed before their first line is omitted."""
    segments: dict[int, LogSegment] = {}
    for number, _, path in _files(folder):
        for line in _lines(path):
            if "from" in line:
                segments.setdefault(number, LogSegment(number, line["from"]))
            else:
                segments[number].steps.append((line["time"], line["positions"]))
    return [segment for _, segment in sorted(segments.items())]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a file; a killed process may leave an incomplete last one."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def history(folder: Path) -> list[int]:
    """Positions that the run's parameters have learned from, in order and with repetitions.

    A segment that resumes from an earlier position undoes the steps beyond that position.
    """
    done: list[int] = []
    for segment in read_segments(folder):
        done = [position for position in done if position < segment.begin]
        done += [position for _, positions in segment.steps for position in positions]
    return sorted(done)
