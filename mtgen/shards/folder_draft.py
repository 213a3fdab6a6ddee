"""Data sets that are written to a folder: hidden beside it until they are complete."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from mtgen.errors import DataError
from mtgen.schema import DatasetCard
from mtgen.shards.draft import LEFT_OUT_FILE, Draft, card_text, left_out_text


class FolderDraft(Draft):
    """A hidden folder beside the folder of the data set, which is renamed to it by `finish`.

    So the folder is either complete or does not exist.
    """

    kind = "folder"

    def __init__(self, folder: Path, overwrite: bool, recipe: str) -> None:
        self.folder = folder.resolve()
        if not self.folder.name:
            raise DataError(f"{self.folder}: is the root of the file system; choose a folder in it")
        super().__init__(str(self.folder), self.folder.with_name(f".{self.folder.name}.partial"), recipe)
        self.overwrite = overwrite
        self._replaced = self.folder.with_name(f".{self.folder.name}.replaced")

    def _prepare(self) -> None:
        self._clear(self._is_of_recipe())
        if self._replaced.exists():
            if self.folder.exists():
                shutil.rmtree(self._replaced)
            else:
                self._replaced.rename(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: is a file; choose another name for the folder")
        if self.folder.exists() and any(self.folder.iterdir()):
            if not self.overwrite:
                raise DataError(
                    f"{self.folder}: is not empty; choose another folder, or overwrite the data set in it (--overwrite)"
                )
            if not (self.folder / "dataset.json").is_file():
                raise DataError(
                    f"{self.folder}: has no dataset.json, so it is not a data set to overwrite; choose another folder"
                )
            if other := [path.name for path in sorted(self.folder.iterdir()) if not _belongs_to_data_set(path)]:
                raise DataError(
                    f"{self.folder}: {other[0]} does not belong to the data set and would be lost; "
                    "move it elsewhere, then overwrite"
                )

    def _unwritable(self, reason: str) -> str:
        return f"{self.location}: cannot be written ({reason}); free space or choose another folder"

    def store(self, part: Path, name: str) -> None:
        """Rename a complete file to its name as a shard."""
        part.rename(self.path / name)

    def is_stored(self, name: str) -> bool:
        """Whether a shard has its name."""
        return (self.path / name).is_file()

    def shard(self, name: str) -> Path:
        """The file of a finished shard."""
        return self.path / name

    def list_left_out(self, problems: Sequence[str]) -> None:
        """Write the list of what was left out."""
        with self.disk():
            (self.path / LEFT_OUT_FILE).write_text(left_out_text(problems), encoding="utf-8")

    def finish(self, card: DatasetCard) -> None:
        """Write the card and rename the draft to its final name."""
        with self.disk():
            for note in self.path.glob("*.json"):
                note.unlink()
            (self.path / "dataset.json").write_text(card_text(card), encoding="utf-8")
            if self.folder.exists():
                self.folder.rename(self._replaced)
            self.path.rename(self.folder)
            shutil.rmtree(self._replaced, ignore_errors=True)
        self.pause()

    def abandon(self) -> None:
        """Remove everything that was written."""
        self._release()


def _belongs_to_data_set(path: Path) -> bool:
    """Whether a file is one of those that making the data set again replaces."""
    if path.is_dir():
        return path.name == "index" and all(file.suffix == ".arrow" for file in path.rglob("*") if file.is_file())
    return path.name in ("dataset.json", "index.parquet", LEFT_OUT_FILE) or path.suffix == ".tar"
