"""The sample log: which positions of the order every worker trained on, and the history that they come to.

`RUN/consumed/000002-1.jsonl` is of the run's third part (from one start of its workers to the next), by the second worker: a line
`{"from": images}`, then for every step `{"time": seconds since 1970, "positions": [...]}`. Positions are written down after their step.
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
    """Writes down the positions of each step of one worker. What a full disk does not take waits for the next step.

    Args:
        folder: the run's.
        part: number of this part of the run, the same for all workers: the first one's `next_segment`.
        images: position from which it goes on.

    Raises:
        TrainingError: the log cannot be begun.
    """

    def __init__(self, folder: Path, part: int, rank: int, images: int) -> None:
        path = folder / SAMPLE_LOG_FOLDER / f"{part:06d}-{rank}.jsonl"
        try:
            path.parent.mkdir(exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise TrainingError(
                f"{path}: cannot be written ({error.strerror}); make room or mend the folder, or set train.log_samples=false"
            ) from error
        self._waiting = b""
        self._write({"from": images})

    def step(self, positions: Tensor) -> None:
        """A step over samples at `[B]` positions is done."""
        self._write({"time": round(time.time(), 3), "positions": positions.tolist()})

    def _write(self, line: dict[str, Any]) -> None:
        self._waiting += json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._waiting = self._waiting[os.write(self._file, self._waiting) :]


def next_segment(folder: Path) -> int:
    """Number of the part of the run that begins now."""
    return 1 + max((part for part, _, _ in _files(folder)), default=-1)


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """Part, rank and path of every file of the log, in order."""
    names = ((path.stem.split("-"), path) for path in (folder / SAMPLE_LOG_FOLDER).glob("[0-9]*-[0-9]*.jsonl"))
    return sorted((int(part), int(rank), path) for (part, rank), path in names)


@dataclass
class LogSegment:
    """What was trained on between a start of the workers and their end.

    Attributes:
        number: of the part, counted from 0.
        begin: position from which they went on.
        steps: (seconds since 1970, positions of one worker) of every step that is written down whole.
    """

    number: int
    begin: int
    steps: list[tuple[float, list[int]]] = field(default_factory=list)


def read_segments(folder: Path) -> list[LogSegment]:
    """All parts of a run's history, in order; one that was killed before it began is left out."""
    parts: dict[int, LogSegment] = {}
    for number, _, path in _files(folder):
        for line in _lines(path):
            if "from" in line:
                parts.setdefault(number, LogSegment(number, line["from"]))
            else:
                parts[number].steps.append((line["time"], line["positions"]))
    return [part for _, part in sorted(parts.items())]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; half of one, which a killed process left, is none."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def history(folder: Path) -> list[int]:
    """Positions that the run's parameters have learned from, as often as they did, in order: a part that goes on from an earlier position
    undoes what was done beyond it."""
    done: list[int] = []
    for part in read_segments(folder):
        done = [position for position in done if position < part.begin]
        done += [position for _, positions in part.steps for position in positions]
    return sorted(done)
