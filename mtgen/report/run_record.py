"""What a run left behind, as the sections read it: its journal, its configurations, its stretches of training."""

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
"""Seconds without a row or a beat after which a run on another host has ended: it beats twice a second, but clocks and NFS may lag."""


@dataclass(frozen=True)
class TrainingSession:
    """One training from its start to its end, by the journal's rows.

    Attributes:
        begin, end: positions, images.
        seconds: between its first and last row.
        workers: processes that trained, a device each.
        status: as the journal says; "" where it ended without a word, or has not ended.
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
        """The rows that a training began with, of the run and of each time it went on."""
        return [row for row in self.rows if row.start]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the last start."""
        return _config(self.starts[-1])

    @property
    def name(self) -> str:
        """Of the run."""
        return str((self.starts[-1].start or {}).get("name", self.folder.name))

    @property
    def tags(self) -> dict[str, str]:
        """What the last start said of code and data."""
        return dict((self.starts[-1].start or {}).get("tags", {}))

    @property
    def images(self) -> int:
        """Images seen so far."""
        return max(row.images for row in self.rows)

    @property
    def planned(self) -> int:
        """Images that it is to see."""
        return int(self.config["train"]["images"])

    @cached_property
    def _trainings(self) -> list[list[JournalRow]]:
        """The rows of each training; what `mtgen evaluate` wrote after an end belongs to none, whether or not that end was told."""
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
    def stretches(self) -> list[TrainingSession]:
        """The run's trainings in order."""
        return [
            TrainingSession(
                rows[0].images,
                rows[-1].images,
                _seconds(rows),
                (rows[0].start or {}).get("workers", 1),
                rows[-1].status or "",
            )
            for rows in self._trainings
        ]

    @property
    def seconds(self) -> float:
        """Of all its trainings, by the clock."""
        return sum(stretch.seconds for stretch in self.stretches)

    @property
    def status(self) -> str:
        """ "finished", "failed", "stopped"; "training", or "interrupted" where it ended without a word."""
        said = self.stretches[-1].status
        return STATUS_BY_MLFLOW.get(said, said) or (
            "training" if _alive(self.folder, self._trainings[-1][-1].time) else "interrupted"
        )

    @property
    def subtitle(self) -> str:
        """Status, images and time on one line."""
        return f"{self.status} · {self.images:,} of {max(self.planned, self.images):,} images · {format_duration(self.seconds)}"

    @cached_property
    def series(self) -> dict[str, list[tuple[int, float]]]:
        """Every number over images; of two at one position the later counts."""
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
    """A run, given as its folder or its name under `runs`.

    Raises:
        UserError: there is no such run, or its journal does not say that it began.
    """
    folder = find_journal(run, runs)
    record = RunRecord(folder, list(read_journal(folder)))
    if not record.starts:
        raise UserError(
            f"{folder}: no training was recorded there (no `start` in {JOURNAL_FILE}); give the folder of a run that has begun"
        )
    return record


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as dotted keys and texts."""
    found: dict[str, str] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": str(value)}
    return found


def _config(row: JournalRow) -> dict[str, Any]:
    return legacy.upgrade(yaml.safe_load((row.start or {}).get("config", "")) or {})


def _seconds(rows: list[JournalRow]) -> float:
    """From the first row to the last; where the machine's clock was set back, that step counts for nothing."""
    return sum(max(0.0, after.time - before.time) for before, after in pairwise(rows))


def _alive(folder: Path, heard: float) -> bool:
    """Whether a process trains the run: it holds the lock, or is on another host, whose locks are perhaps not seen here, and was heard of.

    Args:
        heard: when training wrote its last row, seconds since 1970.
    """
    import fcntl

    try:
        with (folder / ".lock").open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            here = file.read().endswith(f" on {socket.gethostname()}")
        beats = [path.stat().st_mtime for path in (folder / "pulse").glob("*.json")]
    except OSError:
        return False
    return not here and time.time() - max([heard, *beats]) < SILENCE_SECONDS
