"""Class folders: which folder above an image names its class, and what is worth saying about it."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mtgen.errors import DataError, printable
from mtgen.shards.input_names import MAX_EXAMPLES, SplitFolders


class ClassFolders:
    """The classes of images by the folders they are in. Names are normalized (Unicode NFC).

    Args:
        root: the folder of images.
        files: the images, relative to it.
        folders: the folders above the class folders.
        nested: which folder is the class if class folders contain folders.
        classes: names of the classes in order, if they were given; otherwise they are sorted.

    Attributes:
        names: names of the classes, by number.
        notices: what was decided, one line each.

    Raises:
        DataError: a name is not UTF-8, or not among `classes`.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[Path],
        folders: SplitFolders,
        nested: Literal["outer", "inner"],
        classes: Sequence[str],
    ) -> None:
        self.depth = folders.depth
        self.nested = nested
        counts = Counter(name for file in files if (name := self.name(file)) is not None)
        for name in counts:
            if name != printable(name):
                raise DataError(
                    f"{root}: the name of the class folder {printable(name)!r} is not UTF-8; rename it (with convmv, "
                    "or by hand)"
                )
        self.names = list(classes) or sorted(counts)
        if unknown := sorted(set(counts) - set(self.names)):
            raise DataError(
                f"classes={self.names}: {root} also has a class folder {unknown[0]!r}; name it or remove it"
            )
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self.notices = [*self._outer_notices(files, folders), *self._notices(files, counts)]

    def name(self, file: Path) -> str | None:
        """The name of an image's class; `None` if it is in no class folder."""
        below = file.parts[self.depth : -1]
        if not below:
            return None
        return unicodedata.normalize("NFC", below[0] if self.nested == "outer" else below[-1])

    def number(self, file: Path) -> int | None:
        """The number of an image's class; `None` if it is in no class folder."""
        name = self.name(file)
        return None if name is None else self._numbers[name]

    def _outer_notices(self, files: Sequence[Path], folders: SplitFolders) -> list[str]:
        above = [*range(folders.outer), *range(folders.depth - folders.inner, folders.depth)]
        names = sorted({printable(file.parts[level]) for level in above for file in files})
        if not names:
            return []
        return [
            f"{_listed(names)} {'is' if len(names) == 1 else 'are'} around all other folders, so not a class "
            f"(classes=[{names[0]}] makes it one)"
        ]

    def _notices(self, files: Sequence[Path], counts: Counter[str]) -> list[str]:
        notices = []
        deeper = sorted({printable("/".join(f.parts[self.depth : -1])) for f in files if len(f.parts) > self.depth + 2})
        if deeper and self.nested == "outer":
            notices.append(
                f"folders in class folders are not classes of their own: {_listed(deeper)} "
                "(nested=inner makes them classes)"
            )
        without = [file for file in files if self.name(file) is None]
        if without and counts:
            notices.append(f"{len(without):,} images are in no class folder and have no class, such as {without[0]}")
        spellings: dict[str, set[str]] = {}
        for file in files:
            if (below := file.parts[self.depth : -1]) and (name := self.name(file)) is not None:
                spellings.setdefault(name, set()).add(below[0 if self.nested == "outer" else -1])
        united = [name for name, spelled in spellings.items() if len(spelled) > 1]
        if united:
            notices.append(f"folders whose names only differ in their Unicode form are one class: {_listed(united)}")
        folded: dict[str, list[str]] = {}
        for name in counts:
            folded.setdefault(" ".join(name.casefold().split()), []).append(name)
        if similar := [names for names in folded.values() if len(names) > 1]:
            notices.append(f"names of classes that only differ in case or spaces: {_listed(sorted(similar[0]))}")
        return notices


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_EXAMPLES
    return ", ".join([*names[:MAX_EXAMPLES], *([f"and {more:,} more"] if more > 0 else [])])
