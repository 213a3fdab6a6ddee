"""The record of a run that the sections read: its journal, its configurations, its training sessions."""

import socket
import time
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mtgen.config import legacy
from mtgen.errors import UserError
from mtgen.tracking.journal import JOURNAL_FILE, JournalRow, find_journal, read_journal
from mtgen.tracking.progress_bar import format_duration

STATUS_BY_MLFLOW = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}
SILENCE_SECONDS = 300.0
"""Seconds without a row or a heartbeat after which a run on another host counts as ended. A heartbeat comes twice a
second, but clocks and NFS may lag."""


@dataclass(frozen=True)
class TrainingSession:
    """One training process from its start to its end, by the rows of the journal.

    Attributes:
        begin, end: positions, images.
        seconds: between its first and last row.
        workers: number of training processes, with one device each.
        status: as in the journal; "" where it has not ended, or ended without writing a status.
    """

    begin: int
    end: int
    seconds: float
    workers: int
    status: str


@dataclass(frozen=True)
class RunRecord:
    """A run's folder and the rows of its journal."""

    folder: Path
    rows: list[JournalRow]

    @cached_property
    def starts(self) -> list[JournalRow]:
        """The first row of each training session."""
        return [row for row in self.rows if row.start]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the last start."""
        return _config(self.starts[-1])

    @property
    def name(self) -> str:
        """The run's name."""
        return str((self.starts[-1].start or {}).get("name", self.folder.name))

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the last start: versions of code and data."""
        return dict((self.starts[-1].start or {}).get("tags", {}))

    @property
    def images(self) -> int:
        """Images seen so far."""
        return max(row.images for row in self.rows)

    @property
    def planned_images(self) -> int:
        """Images to see in total."""
        return int(self.config["train"]["images"])

    @cached_property
    def _session_rows(self) -> list[list[JournalRow]]:
        """The rows of each session, without those that `mtgen evaluate` wrote after its end."""
        begins = [number for number, row in enumerate(self.rows) if row.start]
        found: list[list[JournalRow]] = []
        for begin, end in zip(begins, [*begins[1:], len(self.rows)], strict=True):
            part = self.rows[begin:end]
            last = next((n for n, row in enumerate(part) if row.status), None)
            if last is None:
                last = max(n for n, row in enumerate(part) if not row.is_evaluation)
            found.append(part[: last + 1])
        return found

    @cached_property
    def sessions(self) -> list[TrainingSession]:
        """The training sessions, in order."""
        return [
            TrainingSession(
                rows[0].images,
                rows[-1].images,
                _seconds(rows),
                (rows[0].start or {}).get("workers", 1),
                rows[-1].status or "",
            )
            for rows in self._session_rows
        ]

    @property
    def seconds(self) -> float:
        """Wall time of all sessions."""
        return sum(session.seconds for session in self.sessions)

    @property
    def device_hours(self) -> float:
        """Hours of all devices in all sessions."""
        return sum(session.seconds * session.workers for session in self.sessions) / 3600

    @property
    def status(self) -> str:
        """ "finished", "failed", "stopped", "training"; "interrupted" where it ended without writing a status."""
        if status := self.sessions[-1].status:
            return STATUS_BY_MLFLOW.get(status, status)
        return "training" if _is_training(self.folder, self._session_rows[-1][-1].time) else "interrupted"

    @property
    def subtitle(self) -> str:
        """Status, images and time on one line."""
        total = max(self.planned_images, self.images)
        return f"{self.status} · {self.images:,} of {total:,} images · {format_duration(self.seconds)}"

    @cached_property
    def series(self) -> dict[str, list[tuple[int, float]]]:
        """Every number over images seen; of two values at one position, the later one."""
        found: dict[str, dict[int, float]] = {}
        for row in self.rows:
            for name, value in row.values.items():
                found.setdefault(name, {})[row.images] = value
        return {name: sorted(points.items()) for name, points in found.items()}

    def last(self, name: str) -> float | None:
        """The last value of a number; `None` where there is none."""
        points = self.series.get(name)
        return points[-1][1] if points else None


def read_record(run: str | Path, runs: Path = Path("runs")) -> RunRecord:
    """The record of a run, given as its folder or its name under `runs`.

    Raises:
        UserError: the run does not exist, or has not started to train.
    """
    folder = find_journal(run, runs)
    record = RunRecord(folder, list(read_journal(folder)))
    if not record.starts:
        raise UserError(
            f"{folder}: has no record of a training (no `start` in {JOURNAL_FILE}); "
            "give the folder of a run that has started to train"
        )
    return record


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as dotted keys and text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def _config(row: JournalRow) -> dict[str, Any]:
    return legacy.upgrade(yaml.safe_load((row.start or {}).get("config", "")) or {})


def _seconds(rows: list[JournalRow]) -> float:
    """From the first row to the last; a step of the clock backwards counts as 0."""
    return sum(max(0.0, after.time - before.time) for before, after in pairwise(rows))


def _is_training(folder: Path, last_row: float) -> bool:
    """Whether a process trains the run.

    It holds the lock; or it is on another host, whose locks may not be visible here, and has recently written
    something.

    Args:
        last_row: time of the last row of the training, seconds since 1970.
    """
    import fcntl

    try:
        with (folder / ".lock").open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            is_local = file.read().endswith(f" on {socket.gethostname()}")
        beats = [path.stat().st_mtime for path in (folder / "pulse").glob("*.json")]
    except OSError:
        return False
    return not is_local and time.time() - max([last_row, *beats]) < SILENCE_SECONDS
