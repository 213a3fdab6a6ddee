"""Names of the files that samples are made from: which are left alone, which split a folder is, where a name leads.

All recipes follow these rules, so that a folder means the same to each of them.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from mtgen.errors import DataError, printable

SPLIT_WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tests", "tst"),
}
"""Split -> words in the names of its folders, lists and shards, in any case."""

_SPLIT_BY_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_FILLER_WORDS = ("set", "data", "dataset", "images", "image", "imgs", "img", "split", "seg", "files", "pictures")
"""Words beside the split in the names of folders, such as those of "training_set", "Test Data" and "seg_train"."""

_SYSTEM_NAMES = {
    *("__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
    *("lost+found", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}
"""Files and folders that macOS, Windows, file servers and Python write, in lower case."""

MAX_EXAMPLES = 3
"""Names of files that a message lists; the others are counted."""


def is_system_name(name: str) -> bool:
    """Whether a file or folder is hidden, or written by an operating system rather than by a person.

    Names that begin with "." are hidden: `.ipynb_checkpoints`, `.DS_Store`, macOS's AppleDouble files `._x.jpg`.
    """
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def split_named(name: str) -> str | None:
    """The split that a folder or list is named after ("Valid", "training_set", "train2017", "Test Data"), or `None`."""
    found = set()
    for word in re.findall(r"[^\W\d_]+", name.casefold()):
        for filler in _FILLER_WORDS:  # also in one word: "trainset"
            word = word.removesuffix(filler) if word.removesuffix(filler) in _SPLIT_BY_WORD else word
        if word not in _FILLER_WORDS:
            found.add(_SPLIT_BY_WORD.get(word))
    return found.pop() if len(found) == 1 else None


class LeftAlone:
    """Files that a recipe does not use: their numbers and the first names, by reason (a plural noun)."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, name: str | Path, count: int = 1) -> None:
        """Count a file; for a whole folder, `count` is the number of files in it."""
        self.counts[reason] += count
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(printable(str(name)))

    def lines(self) -> list[str]:
        """One line per reason: "3 hidden or system files (cat/.DS_Store, ...)"."""
        return [
            f"{count:,} {reason} ({self._examples(reason)})" for reason, count in self.counts.most_common() if count
        ]

    def _examples(self, reason: str) -> str:
        more = self.counts[reason] > len(self.examples[reason])
        return ", ".join([*self.examples[reason], *(["..."] if more else [])])


def files_below(root: Path, left_alone: LeftAlone) -> list[Path]:
    """All files below a folder, sorted, following links; hidden and system files are counted in `left_alone`.

    Raises:
        DataError: a link leads nowhere, or to a folder that contains it.
    """
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        for name in [name for name in subfolders if is_system_name(name)]:
            subfolders.remove(name)
            path = Path(folder, name)
            inside = sum(len(files) for _, _, files in os.walk(path))
            left_alone.add("hidden or system files", f"{path.relative_to(root)}/", inside)
        for link in (path for name in subfolders if (path := Path(folder, name)).is_symlink()):
            if Path(folder).resolve().is_relative_to(link.resolve()):
                raise DataError(f"{link}: is a link to a folder that contains it; remove it")
        for path in (Path(folder, name) for name in names):
            if is_system_name(path.name):
                left_alone.add("hidden or system files", path.relative_to(root))
            elif path.is_file():
                found.append(path)
            elif not path.exists():
                raise DataError(f"{path}: is a link to a missing file; restore the file or remove the link")
    return sorted(found)


@dataclass(frozen=True)
class SplitFolders:
    """How the folders above some files are arranged: outer folders around all of them, split folders, then the rest.

    Attributes:
        outer: number of folders around everything that say nothing, such as "animals" of "animals/cat/x.jpg".
        splits: name of a split folder -> its split; empty if there are none.
        inner: number of folders around everything in each split folder that say nothing.
    """

    outer: int = 0
    splits: dict[str, str] = field(default_factory=dict)
    inner: int = 0

    @property
    def depth(self) -> int:
        """Number of folders above those that are classes."""
        return self.outer + bool(self.splits) + self.inner

    def split_of(self, file: Path) -> str | None:
        """The split of a file by its folder."""
        return self.splits.get(file.parts[self.outer]) if self.splits else None


def split_folders(root: Path, files: Sequence[Path], classes: Collection[str] = ()) -> SplitFolders:
    """Find the split folders above files, given as paths relative to `root`.

    Split folders are recognized by `split_named`. A single one among other folders, with files of its own as they have,
    is taken for a class ("train" beside "bus" and "car").

    Args:
        classes: names of folders that are known to be classes.

    Raises:
        DataError: some files are outside the split folders.
    """
    outer = _around(files, 0, classes)
    first = [file.parts[outer] if len(file.parts) > outer + 1 else "" for file in files]  # "": beside the folders
    named = {name: split for name in sorted(set(first)) if name not in classes and (split := split_named(name))}
    splits = {name: split for word in SPLIT_WORDS for name, split in named.items() if split == word}
    outside = [file for file, name in zip(files, first, strict=True) if name not in splits]
    if outside and splits:
        flat = {len(file.parts) for file in files} == {outer + 2}
        if len(splits) == 1 and flat:
            return SplitFolders(outer)
        plural, names = "s" * (len(splits) > 1), " and ".join(splits)
        raise DataError(
            f"{root / outside[0]}: is outside the folder{plural} {names}; move it into one, or elsewhere"
            + ("" if len(splits) > 1 else f" (or, if {names} is a class, give classes=)")
        )
    if not splits:
        return SplitFolders(outer)
    parts: dict[str, list[Path]] = {}
    for file, name in zip(files, first, strict=True):
        parts.setdefault(name, []).append(file)
    below = [_around(members, outer + 1, classes, splits[name]) for name, members in parts.items()]
    inner = min(below) - outer - 1
    return SplitFolders(outer, splits, inner)


def _around(files: Sequence[Path], depth: int, classes: Collection[str], split: str | None = None) -> int:
    """The depth below the folders that contain nothing but one folder each; `split` is the one that they are in."""
    while files:
        names = {file.parts[depth] for file in files}
        name = next(iter(names))
        if len(names) > 1 or min(len(file.parts) for file in files) < depth + 3:
            break
        if name in classes or split_named(name) not in (None, split):
            break
        depth += 1
    return depth


class ListedFiles:
    """Finds the files that lists and annotations name in a folder, also if the names were written elsewhere.

    A name is tried as it is; then with the folders that it has in common with the end of `root` removed, or with all
    that do not exist here if it is absolute, with Windows' separators, in another case and in another Unicode form.

    Attributes:
        renamed: name as listed -> the file it stands for, where they differ.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.renamed: dict[str, str] = {}
        self._files: dict[str, list[str]] | None = None

    def find(self, name: str, where: str, suffixes: Sequence[str] = ()) -> Path:
        """The path of a listed file.

        Args:
            where: the place that names the file, for errors.
            suffixes: suffixes to try if the name has none of them.

        Raises:
            DataError: the file does not exist, or is outside `root`.
        """
        for candidate in (name, *(name + suffix for suffix in suffixes)):
            if candidate and not _leads_outside(candidate) and (self.root / candidate).is_file():
                return self.root / candidate
        for relative in self._relative_names(name):
            for candidate in (relative, *(relative + suffix for suffix in suffixes)):
                if (found := self._folded(candidate)) is not None:
                    self.renamed[name] = found
                    return self.root / found
        if _leads_outside(name):
            raise DataError(f"{where}: {name!r} is outside {self.root}; give paths relative to it")
        path = self.root / (name if not suffixes or name.endswith(tuple(suffixes)) else name + suffixes[0])
        raise DataError(f"{where}: the file {path} does not exist; restore it or remove its entry")

    def notice(self) -> list[str]:
        """A line on the names that were not taken as they are; none if all were."""
        if not self.renamed:
            return []
        name, file = next(iter(self.renamed.items()))
        return [f"{len(self.renamed):,} names of files are not as in {self.root.name}; {name!r} is taken for {file!r}"]

    def _relative_names(self, name: str) -> Iterator[str]:
        """Paths relative to `root` that a name may stand for, the longest first."""
        windows = "\\" in name
        pure = PureWindowsPath(name) if windows else PurePosixPath(name)
        parts = pure.parts[1:] if pure.anchor else pure.parts
        yield "/".join(parts)
        for start in range(1, len(parts)):
            if pure.anchor or parts[:start] == self.root.parts[-start:]:
                yield "/".join(parts[start:])

    def _folded(self, name: str) -> str | None:
        """The one file of that name, whatever its case and Unicode form."""
        if _leads_outside(name):
            return None
        if self._files is None:
            self._files = {}
            for path in files_below(self.root, LeftAlone()):
                relative = path.relative_to(self.root).as_posix()
                self._files.setdefault(_fold(relative), []).append(relative)
        found = self._files.get(_fold(name), [])
        return found[0] if len(found) == 1 else name if name in found else None


def _leads_outside(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
