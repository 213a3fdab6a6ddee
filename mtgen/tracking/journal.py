"""A run's journal, `metrics.jsonl`: one JSON object per line, in the order of events.

Each line has `images` (the run's position when it was written), `time` (seconds since 1970) and one of:

- `values`: name -> number, such as `{"loss/d": 0.7}`;
- `artifact`: a file that belongs to the run, `{"path": "samples/000012000.png", "to": "samples"}`; the path is relative
  to the run's folder;
- `tags`: name -> text about the whole run, such as `{"alarm.collapse": "images of a class ..."}`;
- `phase`: what the run does while it logs no metrics, such as "evaluating"; "" when training continues;
- `start`: a process starts to write:
  `{"id": ..., "name": ..., "config": YAML, "card": of the data set, "workers": N, "tags": {...}}`;
- `status`: the process ended: "FINISHED", "FAILED" or "KILLED".
"""

import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mtgen.errors import UserError

JOURNAL_FILE = "metrics.jsonl"
NONFINITE_SUFFIX = "/nonfinite"
EVALUATION_PREFIX = "evaluation/"
"""Prefix of the metrics of `mtgen evaluate`, which it writes at the position of the evaluated checkpoint."""
TEST_PREFIX, VALIDATION_PREFIX = "test/", "val/"
"""Prefix of metrics on real samples, and the one that they have in snapshots, which read the validation split. Runs of
older versions have the first in snapshots, too, which read the test split."""


def snapshot_name(metric: str) -> str:
    """The name that a metric has in a snapshot's row, such as `val/class_accuracy` for `test/class_accuracy`."""
    is_real = metric.startswith(TEST_PREFIX)
    return VALIDATION_PREFIX + metric.removeprefix(TEST_PREFIX) if is_real else metric


@dataclass(frozen=True)
class JournalRow:
    """A line of the journal; `begin` and `end` are its position in the file, in bytes."""

    images: int
    time: float
    begin: int = 0
    end: int = 0
    values: dict[str, float] = field(default_factory=dict)
    artifact: dict[str, str] | None = None
    tags: dict[str, str] = field(default_factory=dict)
    phase: str | None = None
    start: dict[str, Any] | None = None
    status: str | None = None

    @property
    def is_evaluation(self) -> bool:
        """Whether `mtgen evaluate` wrote it, not training; it has no values if no metric could be computed."""
        has_event = self.start or self.status or self.artifact or self.tags or self.phase is not None
        return not has_event and all(name.startswith(EVALUATION_PREFIX) for name in self.values)


def find_journal(run: str | Path, runs: Path = Path("runs")) -> Path:
    """The folder of a run with a journal, given as a folder or as the run's name under `runs`.

    Raises:
        UserError: the run does not exist.
    """
    folder = next((f for f in (Path(run), runs / run) if (f / JOURNAL_FILE).is_file()), None)
    if folder is None:
        raise UserError(
            f"{run}: not a run (no {JOURNAL_FILE}); use a run's folder, or its name under {runs.absolute()}"
        )
    return folder.absolute()


def read_journal(folder: str | Path, offset: int = 0) -> Iterator[JournalRow]:
    """The complete rows of a run's journal from byte `offset` on; none if it does not exist yet."""
    try:
        file = open(Path(folder) / JOURNAL_FILE, "rb")
    except FileNotFoundError:
        return
    with file:
        yield from read_rows(file, offset)


def read_rows(file: BinaryIO, offset: int = 0) -> Iterator[JournalRow]:
    """The complete rows of an open journal from byte `offset` on, without a last line that is still being written.

    A damaged line is skipped with a warning that names it.
    """
    file.seek(offset)
    for line in file:
        begin, offset = offset, offset + len(line)
        if not line.endswith(b"\n"):
            return
        row = _parse(line, begin)
        if row is None:
            warnings.warn(f"{file.name}: the line at byte {begin} is damaged and was skipped", stacklevel=2)
        else:
            yield row


def _parse(line: bytes, begin: int) -> JournalRow | None:
    try:
        return JournalRow(begin=begin, end=begin + len(line), **json.loads(line))
    except (ValueError, TypeError):
        return None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


class JournalReader:
    """Reads the rows that a training appends to a journal from now on, even if a resume cuts the journal first."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._file_number, size = self._stat()
        self._offset = max((row.end for row in read_journal(folder)), default=0) if size else 0

    def new(self) -> list[JournalRow]:
        """The rows since the last call."""
        number, size = self._stat()
        if number != self._file_number or size < self._offset:  # cut by a resume, whose start is the first new row
            self._file_number = number
            self._offset = max((row.begin for row in read_journal(self._folder) if row.start), default=0)
        rows = list(read_journal(self._folder, self._offset))
        self._offset = rows[-1].end if rows else self._offset
        return rows

    def _stat(self) -> tuple[int, int]:
        try:
            stat = (self._folder / JOURNAL_FILE).stat()
        except FileNotFoundError:
            return 0, 0
        return stat.st_ino, stat.st_size


class Journal:
    """Appends to the journal of a run; a partial last line, left by a killed process, is removed on opening.

    Args:
        folder: folder of the run; created if missing.

    Raises:
        UserError: the journal cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self.path = self.folder / JOURNAL_FILE
        self._unwritten = b""
        self._nonfinite: dict[str, int] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); set runs=FOLDER to a folder of yours"
            ) from None
        self._cut_torn_end()
        self._count()

    def row(self, images: int, values: Mapping[str, float]) -> dict[str, float]:
        """Append metrics by name, and return them as written.

        A value that is not finite is left out and counted under `name/nonfinite`.
        """
        finite = {name: float(value) for name, value in values.items()}
        for name in [name for name, value in finite.items() if not math.isfinite(value)]:
            del finite[name]
            self._nonfinite[name] = self._nonfinite.get(name, 0) + 1
            finite[name + NONFINITE_SUFFIX] = float(self._nonfinite[name])
        self.append(images, values=finite)
        return finite

    def tags(self, images: int, texts: Mapping[str, str]) -> None:
        """Append texts about the whole run, by name."""
        self.append(images, tags=dict(texts))

    def artifact(self, images: int, path: str | Path, to: str = "") -> None:
        """Append a file of the run, for the folder `to` of its artifacts."""
        path = Path(path).absolute()
        inside = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path
        self.append(images, artifact={"path": inside.as_posix(), "to": to})

    def phase(self, images: int, text: str) -> None:
        """Append what the run does while it logs no metrics; "" when training continues."""
        self.append(images, phase=text)

    def append(self, images: int, **content: Any) -> None:
        """Append a row and pass it to the operating system.

        A full disk does not stop the run: the row stays in memory and is written with the next one.
        """
        row = {"images": int(images), "time": round(time.time(), 3)} | content
        self._unwritten += json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
        except OSError as error:
            warnings.warn(
                f"{self.path}: not written yet ({error.strerror}); rows are kept in memory until the next one",
                stacklevel=3,
            )

    def rewind(self, images: int) -> list[JournalRow]:
        """Remove everything from the first row after `images`: a run that resumes there writes those rows again.

        The shorter journal is a new file, so a process that still reads the old one is not disturbed.

        Returns:
            Removed rows that the run does not write again: evaluations of checkpoints up to `images`.
        """
        cut = next((row.begin for row in read_journal(self.folder) if row.images > images), None)
        if cut is None:
            return []
        lost = [row for row in read_journal(self.folder, cut) if row.images <= images and row.is_evaluation]
        new = self.path.with_suffix(".new")
        try:
            new.write_bytes(self.path.read_bytes()[:cut])
            os.replace(new, self.path)
        except OSError as error:
            raise UserError(f"{new}: cannot be written ({error.strerror}); free disk space and resume again") from None
        os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self._count()
        return lost

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _cut_torn_end(self) -> None:
        """Remove what follows the last valid row: a partial line, or the zeros that a power cut leaves."""
        size = os.fstat(self._file).st_size
        good = 0
        with open(self.path, "rb") as file:
            position = 0
            for line in file:
                position += len(line)
                if line.endswith(b"\n") and _is_json(line):
                    good = position
        if good < size:
            os.ftruncate(self._file, good)

    def _count(self) -> None:
        """Restore the counts of non-finite values from the journal."""
        self._nonfinite = {
            name.removesuffix(NONFINITE_SUFFIX): int(value)
            for row in read_journal(self.folder)
            for name, value in row.values.items()
            if name.endswith(NONFINITE_SUFFIX)
        }
