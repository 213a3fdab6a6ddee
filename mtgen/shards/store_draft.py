"""Data sets that are written to a store: each shard is uploaded when it is complete, the card last."""

import contextlib
import hashlib
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mtgen.data.dataset_card import CARD_FILE
from mtgen.data.index_build import PARALLEL_REQUESTS, Parts, source_kind, usable_rows
from mtgen.data.index_file import ShardRecord
from mtgen.data.index_store import PARTS_FOLDER, index_dataset
from mtgen.errors import DataError
from mtgen.schema import DatasetCard
from mtgen.shards.draft import LEFT_OUT_FILE, Draft, card_text, left_out_text
from mtgen.storage.remote_store import RemoteStore
from mtgen.storage.shard_cache import root
from mtgen.utils.shell import shell_command

MARKER = ".unfinished"
"""File in the store that says who is writing: the hash of the recipe, or a random number."""


class StoreDraft(Draft):
    """Shards are written in `$MTGEN_CACHE` and uploaded one by one, with their rows of the index; the card comes last.

    A store cannot rename folders, so that a data set in it is never replaced. A run that is killed resumes on the same
    system; on another one, the same recipe uploads the same bytes again.
    """

    kind = "URL"

    def __init__(self, store: RemoteStore, card: DatasetCard, overwrite: bool, recipe: str) -> None:
        url = str(store)
        if not store.writable:
            raise DataError(f"{url}: an HTTP server cannot be written to; give a folder, or the URL of a store (s3://)")
        if overwrite:
            raise DataError(
                f"{url}: a data set in a store cannot be overwritten at once, and readers would see a mixture; "
                "write to another URL, or remove it first with the store's own tools"
            )
        name = hashlib.sha256(url.encode()).hexdigest()[:24]
        super().__init__(url, root() / "drafts" / name, recipe)
        self._source = store
        self._card = card
        self._token = hashlib.sha256(recipe.encode()).hexdigest() if recipe else uuid.uuid4().hex
        self._is_finished = False

    def _unwritable(self, reason: str) -> str:
        return f"{self.path}: cannot be written ({reason}); free space, or set MTGEN_CACHE to a folder on another disk"

    def _prepare(self) -> None:
        note = self.path / MARKER
        before = note.read_text(encoding="utf-8") if note.is_file() else ""
        marker = (self._source.read(MARKER) or b"").decode()
        names = self._source.names("")
        if marker and marker == before != self._token and CARD_FILE not in names:  # of a writer killed on this system
            self._remove_all(names)
        elif names and marker != self._token:
            raise DataError(f"{self.location}: {_in_the_way(names, self.location)}")
        stored = {file.stem for file in self.path.glob("*.stored")}
        self._clear(self._is_of_recipe() and marker == self._token and stored <= names)
        note.write_text(self._token, encoding="utf-8")
        self._source.write(MARKER, self._token.encode())

    def _remove_all(self, names: set[str]) -> None:
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            deque(pool.map(self._source.remove, names), maxlen=0)

    def store(self, part: Path, name: str) -> None:
        """Upload a complete shard and the rows of its index, and remove the local file."""
        self._source.put(name, part)
        version = self._source.version(name)
        if version is None or version.size != part.stat().st_size:
            raise DataError(f"{self.location}/{name}: is not what was uploaded; does another program write there?")
        record = ShardRecord(name, version.size, version.tag)
        rows, _ = usable_rows(part, self._card, record)
        Parts(self._source, PARTS_FOLDER, self._card, source_kind(self._source)).write(record, rows)
        part.unlink()
        (self.path / f"{name}.stored").touch()

    def is_stored(self, name: str) -> bool:
        """Whether this system has uploaded a shard."""
        return (self.path / f"{name}.stored").is_file()

    def shard(self, name: str) -> Path:
        """A finished shard, downloaded again."""
        if (version := self._source.version(name)) is None:
            raise DataError(f"{self.location}/{name}: does not exist any more; another program has removed it")
        self._source.fetch(name, version.size, self.path / name)
        return self.path / name

    def list_left_out(self, problems: Sequence[str]) -> None:
        """Write the list of what was left out."""
        self._source.write(LEFT_OUT_FILE, left_out_text(problems).encode())

    def finish(self, card: DatasetCard) -> None:
        """Write the card, then the index from the rows of every shard.

        Raises:
            DataError: another command has begun to write here; or the index cannot be written.
        """
        if self._source.read(MARKER) != self._token.encode():
            raise DataError(f"{self.location}: another command has begun to write here; start again with another URL")
        self._source.write(CARD_FILE, card_text(card).encode())
        self._source.remove(MARKER)
        self._is_finished = True
        try:
            index_dataset(self.location)
        except DataError as error:
            command = shell_command("mtgen shards index", self.location)
            text = f"{error}\n{self.location} is complete but for its index; to make it: `{command}`"
            raise type(error)(text) from None
        finally:
            self._release()

    def abandon(self) -> None:
        """Remove everything that was written, unless the data set is complete."""
        if self._is_finished:
            return
        with contextlib.suppress(DataError):  # the error that led here says more; the next writer clears up
            self._remove_all(self._source.names("") - {MARKER})
            self._source.remove(MARKER)
        self._release()


def _in_the_way(names: set[str], url: str) -> str:
    if CARD_FILE not in names and MARKER in names:
        return (
            "another command is writing here, or was interrupted on another system; wait for it, choose another URL, "
            "or remove what it left with the store's own tools"
        )
    return "is not empty; choose another URL"
