"""A run's checkpoints once more in another place: a folder, or a store that fsspec knows. Nothing that goes wrong there stops a run.

There they lie as here, `URL/NAME/000000120000/...`; the manifest comes last, so that one without it is known to be half a checkpoint.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.checkpoint import MANIFEST_FILE, STATE_FILE
from mtgen.checkpointing.retention import Retention
from mtgen.errors import CheckpointError, ConfigError, DataError
from mtgen.storage.source import STORE_PACKAGES, RemoteStore, absolute_location, is_url

SCHEMES = ("file", *(scheme for scheme in STORE_PACKAGES if scheme not in ("http", "https")))
"""Stores that can be written to."""


class CheckpointStore(RemoteStore):
    """A run's folder of checkpoints behind a URL, or in another folder of this machine.

    Raises:
        ConfigError: the address is of a kind that is not written to, such as `pipe:` or a chained one.
    """

    def __init__(self, url: str, run: str) -> None:
        scheme = urlsplit(url).scheme if "://" in url else ""
        if is_url(url) and (scheme not in SCHEMES or "::" in url):
            raise ConfigError(
                f"checkpoint.mirror={url}: is no address that checkpoints are written to (commands are never run); "
                f"possible: a folder, or a URL that begins with {', '.join(f'{s}://' for s in SCHEMES)}"
            )
        super().__init__(f"{absolute_location(url).rstrip('/')}/{run}")
        self.local = scheme in ("", "file")

    def names(self) -> list[str]:
        """The checkpoints that are there, whole or not, the oldest first."""

        def listed(fs: Any, path: str) -> list[str]:
            fs.invalidate_cache()
            return [
                str(entry).rstrip("/").rpartition("/")[2]
                for entry in self._call(fs, "_ls", "ls", path.rstrip("/"), detail=False)
            ]

        return sorted(name for name in self._try("", listed) or [] if checkpoint.is_checkpoint_name(name))

    def put(self, name: str, file: Path) -> None:
        """Upload a file, over what is there.

        Raises:
            DataError: the store does not take it.
            OSError: `file` cannot be read.
        """

        def send(fs: Any, path: str) -> bool:
            if self.local:
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._call(fs, "_put_file", "put_file", str(file), path)
            return True

        if self._try(name, send, "written") is None:
            raise DataError(f"{self.url}/{name}: cannot be written: the store says that there is no such place")

    def remove(self, name: str) -> None:
        """Remove a checkpoint, or one of its files; what is not there is no error."""
        self._try(name, lambda fs, path: self._call(fs, "_rm", "rm", path, recursive=True), "removed")


class Mirror:
    """Brings a run's place elsewhere up to what is here, in a thread of its own, whenever it is told of a new checkpoint.

    Args:
        root: the run's folder of checkpoints.
        keep: which stay there; the same as here.
        warn: is told what went wrong. It is tried again with the next checkpoint.
    """

    def __init__(self, shelf: CheckpointStore, root: Path, keep: Retention, warn: Callable[[str], None]) -> None:
        self._shelf = shelf
        self._root = root
        self._keep = keep
        self._warn = warn
        self._sent: dict[str, bytes] = {}
        self._numbers: dict[str, dict[str, float]] = {}
        self._wanted = threading.Event()
        self._last = False
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """There is a new checkpoint."""
        self._wanted.set()

    def close(self) -> None:
        """Look once more, and wait for the end of that: as long as the store is waited for, at most."""
        self._last = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            self._wanted.wait()
            self._wanted.clear()
            last = self._last
            try:
                self.sync()
            except (DataError, OSError) as error:
                self._warn(
                    f"checkpoint.mirror: {error}. Training goes on, and it is tried again with the next checkpoint"
                )

    def sync(self) -> None:
        """Upload what is missing there, the newest first; remove what is kept no longer.

        Raises:
            DataError: the store does not answer, or refuses.
            OSError: a folder in its place cannot be written.
        """
        there, here = (
            set(self._shelf.names()),
            {folder.name: folder for folder in checkpoint.checkpoint_folders(self._root)},
        )
        for name, folder in sorted(here.items(), reverse=True):
            self._numbers[name] = checkpoint.snapshot_metrics(folder)
            try:
                manifest = (folder / MANIFEST_FILE).read_bytes()
                if not (
                    name in there and manifest in (self._sent.get(name), self._shelf.read(f"{name}/{MANIFEST_FILE}"))
                ):
                    self._upload(folder)
                self._sent[name] = manifest
            except FileNotFoundError:
                if folder.exists():
                    raise
                here.pop(name)  # removed here meanwhile, since newer ones have come
        numbers = {int(name): self._measured(name) for name in there | set(here)}
        for images, why in self._keep.reasons(numbers).items():
            name = f"{images:012d}"
            if not why and name not in here:
                self._shelf.remove(name)

    def _upload(self, folder: Path) -> None:
        self._shelf.remove(f"{folder.name}/{MANIFEST_FILE}")
        for name in [*sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_FILE), MANIFEST_FILE]:
            self._shelf.put(f"{folder.name}/{name}", folder / name)

    def _measured(self, name: str) -> dict[str, float]:
        """What was measured at a checkpoint that may be there alone."""
        if name not in self._numbers:
            self._numbers[name] = checkpoint.metrics_in_state(self._shelf.read(f"{name}/{STATE_FILE}") or b"")
        return self._numbers[name]


def restore(shelf: CheckpointStore, root: Path, warn: Callable[[str], None]) -> int | None:
    """Fetch the newest whole checkpoint into a run's empty folder of checkpoints; its images seen, `None` where there are none.

    Raises:
        CheckpointError: the store does not answer, so that nobody knows; all are damaged; or there is no room here.
    """
    try:
        names = shelf.names()
        for name in reversed(names):
            if (problem := _fetch(shelf, name, root)) is None:
                return int(name)
            warn(f"{problem}; the checkpoint before it is looked at")
    except (DataError, OSError) as error:
        raise CheckpointError(
            f"checkpoint.mirror: {error}. {root.parent} has no checkpoint of its own, and whether one is there is not known: start again "
            "when the store answers, or without checkpoint.mirror to begin anew"
        ) from error
    if names:
        raise CheckpointError(
            f"{shelf}: no checkpoint is whole there; bring back a copy, or begin again under another name"
        )
    return None


def _fetch(shelf: CheckpointStore, name: str, root: Path) -> str | None:
    """Fetch one checkpoint; what is wrong with it, `None` if it is whole."""
    content = shelf.read(f"{name}/{MANIFEST_FILE}")
    if content is None:
        return f"{shelf}/{name}: has no {MANIFEST_FILE}: its upload was interrupted"
    root.mkdir(parents=True, exist_ok=True)
    checkpoint.remove_leftovers(root)
    beside = root / f".{name}{checkpoint.UNFINISHED_SUFFIX}"
    folder = beside / name
    folder.mkdir(parents=True)
    try:
        (folder / MANIFEST_FILE).write_bytes(content)
        for file, expected in checkpoint.manifest(folder).items():
            shelf.fetch(f"{name}/{file}", expected.bytes, folder / file)
        checkpoint.verify(folder)
        checkpoint.finalize(folder, root / name)
    except CheckpointError as error:
        return str(error).replace(str(folder), f"{shelf}/{name}")
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return None
