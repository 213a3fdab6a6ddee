"""Data sets that are being written: hidden until they are complete, locked, and resumable."""

import contextlib
import fcntl
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from mtgen.errors import DataError, printable
from mtgen.schema import DatasetCard

LEFT_OUT_FILE = "left_out.txt"
"""File beside `dataset.json` that lists what could not be used and was left out, one line each."""

RECIPE_FILE = "recipe.json"
_KEPT_SUFFIXES = (".tar", ".json", ".fragment", ".stored")
"""Files of a killed run that the next run of the same recipe uses."""


class Draft(ABC):
    """A data set that is being written, first to a local folder. Readers see it when it is complete.

    Only one process of a system can hold a draft; the kernel releases its lock when the process is killed.

    Attributes:
        kind: of the location: "folder" or "URL".
        location: folder or URL of the data set.
        path: local folder in which shards and whatever belongs to them are written.
        recipe: everything the shards are made from, as JSON. Finished shards of a killed run with the same recipe are
            kept, everything else is removed; without a recipe, nothing is kept.
    """

    kind: ClassVar[str]

    def __init__(self, location: str, path: Path, recipe: str) -> None:
        self.location = location
        self.path = path
        self.recipe = recipe
        self._lock: int | None = None

    @contextlib.contextmanager
    def disk(self) -> Iterator[None]:
        """Turn an `OSError` in the `with` block into a `DataError`."""
        try:
            yield
        except OSError as error:
            raise DataError(self._unwritable(error.strerror or str(error))) from error

    @abstractmethod
    def _unwritable(self, reason: str) -> str:
        """The error when the local folder cannot be written."""

    def claim(self) -> None:
        """Lock the draft and remove what a killed writer left behind.

        Raises:
            DataError: another process has it, or there is something else at its location.
        """
        with self.disk():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.pause()
                raise DataError(
                    f"{self.location}: another process is writing it; wait for it, or choose another {self.kind}"
                ) from None
            try:
                self._prepare()
            except BaseException:
                self._release()
                raise

    def _is_of_recipe(self) -> bool:
        """Whether the local folder holds what a killed run of the same recipe has finished."""
        note = self.path / RECIPE_FILE
        return bool(self.recipe) and note.is_file() and note.read_bytes() == self.recipe.encode()

    def _clear(self, keep: bool) -> None:
        """Remove from the local folder what a killed run left, but for what it has finished if that is kept."""
        for file in self.path.iterdir():
            if file.is_dir():
                shutil.rmtree(file)
            elif not (keep and file.suffix in _KEPT_SUFFIXES):
                file.unlink()
        if not keep:
            (self.path / RECIPE_FILE).write_text(self.recipe, encoding="utf-8")

    def _release(self) -> None:
        """Remove the local folder and its lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.pause()

    def pause(self) -> None:
        """Keep what is finished for the next run of the same recipe; no-op once the lock is gone."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @abstractmethod
    def _prepare(self) -> None:
        """Check the location, and clear it and the local folder of what a killed writer left."""

    @abstractmethod
    def store(self, part: Path, name: str) -> None:
        """Make a complete file in the local folder a shard of the data set; in any process."""

    @abstractmethod
    def is_stored(self, name: str) -> bool:
        """Whether a shard is finished."""

    @abstractmethod
    def shard(self, name: str) -> Path:
        """A finished shard as a local file."""

    @abstractmethod
    def list_left_out(self, problems: Sequence[str]) -> None:
        """Write the list of what was left out."""

    @abstractmethod
    def finish(self, card: DatasetCard) -> None:
        """Write the card, which makes the data set visible."""

    @abstractmethod
    def abandon(self) -> None:
        """Remove everything that was written."""


def card_text(card: DatasetCard) -> str:
    """The content of `dataset.json`."""
    return json.dumps(card.model_dump(mode="json", exclude={"domains"}), indent=1, ensure_ascii=False) + "\n"


def left_out_text(problems: Sequence[str]) -> str:
    """The content of `left_out.txt`."""
    return "".join(f"{printable(problem)}\n" for problem in problems)


def check_split_name(location: str | Path, split: str) -> None:
    """Raise `DataError` if a split cannot have this name."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise DataError(f"{location}: split {split!r} is not a valid name; use letters, digits and '_'")


def shard_name(split: str, number: int) -> str:
    """The name of a shard."""
    return f"{split}-{number:06d}.tar"


def pattern(split: str, shards: int) -> str:
    """The names of a split's shards, as in `dataset.json`."""
    return f"{split}-{{000000..{shards - 1:06d}}}.tar"
