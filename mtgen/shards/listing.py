"""What a folder or file looks like: a listing that all recipes look at, and the ways to read it that they propose."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from mtgen.errors import DataError
from mtgen.shards.input_names import LeftAlone, files_below

CERTAIN, LIKELY, POSSIBLE, IMPOSSIBLE = 0.9, 0.6, 0.3, 0.0
"""Certainty of a proposal: the format's own files were read; the names fit; nothing better may fit; it fails so far."""


@dataclass(frozen=True)
class Proposal:
    """One way in which a recipe could read a folder or file.

    Attributes:
        options: options of the recipe, as they are given on the command line.
        reason: what was found, a phrase such as "12 XML files of VOC's format beside their images"; of an impossible
            one, what is in the way.
        certainty: from 0 to 1; the best is listed first.
    """

    options: dict[str, Any]
    reason: str
    certainty: float


@dataclass(frozen=True)
class Listing:
    """The files below a folder, or a single file; hidden and system files are left out.

    Attributes:
        path: the folder or file.
        root: the folder, or that of the file.
        files: paths relative to `root`, sorted.
        left_alone: the hidden and system files.
    """

    path: Path
    root: Path
    files: list[PurePosixPath]
    left_alone: LeftAlone = field(default_factory=LeftAlone)

    @classmethod
    def of(cls, path: str | Path) -> "Listing":
        """List a folder or file; `DataError` if it does not exist, or contains a link that leads nowhere."""
        path = Path(path).resolve()
        if path.is_file():
            return cls(path, path.parent, [PurePosixPath(path.name)])
        if not path.is_dir():
            raise DataError(f"{path}: does not exist; give a folder or a file")
        left_alone = LeftAlone()
        return cls.of_files(path, files_below(path, left_alone), left_alone)

    @classmethod
    def of_files(cls, root: Path, files: Iterable[Path], left_alone: LeftAlone | None = None) -> "Listing":
        """A listing of files that `files_below` found in a folder."""
        relative = [PurePosixPath(file.relative_to(root)) for file in files]
        return cls(root, root, relative, left_alone or LeftAlone())

    @cached_property
    def by_suffix(self) -> dict[str, list[PurePosixPath]]:
        """Suffix in lower case, such as ".jpg" -> its files."""
        found: dict[str, list[PurePosixPath]] = {}
        for file in self.files:
            found.setdefault(file.suffix.lower(), []).append(file)
        return found

    def with_suffix(self, *suffixes: str) -> list[PurePosixPath]:
        """The files with one of these suffixes (in lower case), sorted."""
        return sorted(file for suffix in suffixes for file in self.by_suffix.get(suffix, []))

    def named(self, name: str) -> list[PurePosixPath]:
        """The files of that name, in any case, in any folder."""
        return [file for file in self.files if file.name.casefold() == name.casefold()]

    def folders(self) -> Counter[str]:
        """Name of a folder in `root` -> number of files below it."""
        return Counter(file.parts[0] for file in self.files if len(file.parts) > 1)

    def head(self, file: PurePosixPath, size: int = 65536) -> bytes:
        """The first bytes of a file, to recognize its content; empty if it cannot be read."""
        try:
            with (self.root / file).open("rb") as opened:
                return opened.read(size)
        except OSError:
            return b""
