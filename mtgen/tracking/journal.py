"""A run's journal, `metrics.jsonl`: one JSON object a line, in the order in which things happened.

Every line has `images` (the run's position when it was written) and `time` (seconds since 1970), and one of:

- `values`: name -> number, such as `{"loss/d": 0.7}`;
- `artifact`: a file to keep with the run, `{"path": "samples/000012000.png", "to": "samples"}`, the path relative to the run's folder;
- `tags`: name -> text, what is to be said of the run as a whole, such as `{"alarm.collapse": "images of a class ..."}`;
- `phase`: what the run is busy with while no numbers come, such as "evaluating"; "" when it goes on;
- `start`: a process began to write here: `{"id": ..., "name": ..., "config": YAML, "card": of the data set, "workers": N, "tags": {...}}`;
- `status`: it ended: "FINISHED", "FAILED" or "KILLED".
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
"""What names of numbers begin with that `mtgen evaluate` writes, at the position of the checkpoint that it measured."""


@dataclass(frozen=True)
class JournalRow:
    """One line of the journal; `begin` and `end` are its place in the file, in bytes."""

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
        """Whether `mtgen evaluate` wrote it, and not the training; where nothing could be measured, it has no numbers."""
        told = self.start or self.status or self.artifact or self.tags or self.phase is not None
        return not told and all(name.startswith(EVALUATION_PREFIX) for name in self.values)


def find_journal(run: str | Path, runs: Path = Path("runs")) -> Path:
    """The folder of a run that has a journal, given as that folder or as its name under `runs`.

    Raises:
        UserError: there is no such run.
    """
    folder = next((f for f in (Path(run), runs / run) if (f / JOURNAL_FILE).is_file()), None)
    if folder is None:
        raise UserError(
            f"{run}: no run there (no {JOURNAL_FILE}); give a run's folder, or its name under {runs.absolute()}"
        )
    return folder.absolute()


def read_journal(folder: str | Path, offset: int = 0) -> Iterator[JournalRow]:
    """The complete rows of a run's journal from byte `offset` on; none where there is no journal yet."""
    try:
        file = open(Path(folder) / JOURNAL_FILE, "rb")
    except FileNotFoundError:
        return
    with file:
        yield from read_rows(file, offset)


def read_rows(file: BinaryIO, offset: int = 0) -> Iterator[JournalRow]:
    """The complete rows of an open journal from byte `offset` on; a last line that is still being written waits.

    A line that is no row (a disk's fault) is passed over with a warning that names it.
    """
    file.seek(offset)
    for line in file:
        begin, offset = offset, offset + len(line)
        if not line.endswith(b"\n"):
            return
        row = _parse(line, begin)
        if row is None:
            warnings.warn(f"{file.name}: the line at byte {begin} is damaged and was passed over", stacklevel=2)
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
    """The rows that a training appends to a journal from now on, also when it first cuts the journal for a resume."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._file_number, size = self._stat()
        self._offset = max((row.end for row in read_journal(folder)), default=0) if size else 0

    def new(self) -> list[JournalRow]:
        """The rows since the last call."""
        number, size = self._stat()
        if number != self._file_number or size < self._offset:  # cut for a resume: what follows its start is new
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
    """Append to the journal of a run; what a killed process left of its last line is cut off when it is opened.

    Args:
        folder: the run's folder; made where missing.

    Raises:
        UserError: where the journal cannot be written.
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
                f"{self.path}: cannot be written ({error.strerror}); give a `runs` folder that is yours"
            ) from None
        self._cut_torn_end()
        self._count()

    def row(self, images: int, values: Mapping[str, float]) -> dict[str, float]:
        """Append named numbers; returns them as they are written.

        One that is not finite is left out and counted under `name/nonfinite` instead.
        """
        finite = {name: float(value) for name, value in values.items()}
        for name in [name for name, value in finite.items() if not math.isfinite(value)]:
            del finite[name]
            self._nonfinite[name] = self._nonfinite.get(name, 0) + 1
            finite[name + NONFINITE_SUFFIX] = float(self._nonfinite[name])
        self.append(images, values=finite)
        return finite

    def tags(self, images: int, texts: Mapping[str, str]) -> None:
        """Append what is to be said of the run as a whole, by name."""
        self.append(images, tags=dict(texts))

    def artifact(self, images: int, path: str | Path, to: str = "") -> None:
        """Append that the file `path` belongs to the run, to be kept in the folder `to` of its artifacts."""
        path = Path(path).absolute()
        inside = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path
        self.append(images, artifact={"path": inside.as_posix(), "to": to})

    def phase(self, images: int, text: str) -> None:
        """Append what the run is busy with while no numbers come ("" when it goes on)."""
        self.append(images, phase=text)

    def append(self, images: int, **content: Any) -> None:
        """Append one row and hand it to the operating system.

        A disk without space does not stop the run: the row is kept in memory and written with the next one.
        """
        row = {"images": int(images), "time": round(time.time(), 3)} | content
        self._unwritten += json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
        except OSError as error:
            warnings.warn(
                f"{self.path}: not written yet ({error.strerror}); kept in memory until the next row", stacklevel=3
            )

    def rewind(self, images: int) -> list[JournalRow]:
        """Cut everything from the first row beyond `images`: a run that resumes there writes those rows again.

        The shorter journal replaces the old one under its name, so a process that still reads the old one is not disturbed.

        Returns:
            What was cut and nobody would write again: evaluations of checkpoints up to there.
        """
        cut = next((row.begin for row in read_journal(self.folder) if row.images > images), None)
        if cut is None:
            return []
        lost = [row for row in read_journal(self.folder, cut) if row.images <= images and row.is_evaluation]
        beside = self.path.with_suffix(".new")
        try:
            beside.write_bytes(self.path.read_bytes()[:cut])
            os.replace(beside, self.path)
        except OSError as error:
            raise UserError(f"{beside}: cannot be written ({error.strerror}); make room and resume again") from None
        os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self._count()
        return lost

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _cut_torn_end(self) -> None:
        """Cut what stands after the last good row: half a line, or the zeros that a power cut leaves."""
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
        """Take up the counts of non-finite numbers where the journal left them."""
        self._nonfinite = {
            name.removesuffix(NONFINITE_SUFFIX): int(value)
            for row in read_journal(self.folder)
            for name, value in row.values.items()
            if name.endswith(NONFINITE_SUFFIX)
        }
