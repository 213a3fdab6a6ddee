"""A copy of a run's checkpoints in another folder or a store that fsspec supports. Errors there never stop a run.

The layout is that of the run, `URL/NAME/000000120000/...`. The manifest is uploaded last, so that a checkpoint without
one is known to be incomplete.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.checkpoint import MANIFEST_FILE, STATE_FILE
from mtgen.checkpointing.retention import Retention
from mtgen.errors import CheckpointError, ConfigError, DataError
from mtgen.storage.remote_store import STORE_PACKAGES, RemoteStore
from mtgen.storage.source import absolute_location, is_url

SCHEMES = ("file", *(scheme for scheme in STORE_PACKAGES if scheme not in ("http", "https")))
"""URL schemes of stores that can be written to."""


class CheckpointStore(RemoteStore):
    """A run's folder of checkpoints at a URL or in another local folder.

    Raises:
        ConfigError: the scheme of the URL is not supported, such as `pipe:` or a chained one.
    """

    def __init__(self, url: str, run: str) -> None:
        scheme = urlsplit(url).scheme if "://" in url else ""
        if is_url(url) and (scheme not in SCHEMES or "::" in url):
            raise ConfigError(
                f"checkpoint.mirror={url}: not a supported URL (commands are never run); "
                f"possible: a folder, or a URL that starts with {', '.join(f'{s}://' for s in SCHEMES)}"
            )
        super().__init__(f"{absolute_location(url).rstrip('/')}/{run}")
        self.local = scheme in ("", "file")

    def checkpoints(self) -> list[str]:
        """Names of the checkpoints in the store, complete or not, the oldest first."""
        return sorted(name for name in self.names("") if checkpoint.is_checkpoint_name(name))

    def put(self, name: str, file: Path) -> None:
        """See `RemoteStore.put`; a local folder is made if necessary."""
        if self.local:
            fs, path = self._files()
            fs.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
        super().put(name, file)


class Mirror:
    """Keeps a copy of a run's checkpoints up to date, in a background thread.

    Args:
        store: the copy.
        root: the run's folder of checkpoints.
        keep: retention of the copy; the same as that of the run.
        warn: called with a message for every failure; the next checkpoint is another attempt.
    """

    def __init__(self, store: CheckpointStore, root: Path, keep: Retention, warn: Callable[[str], None]) -> None:
        self._store = store
        self._root = root
        self._keep = keep
        self._warn = warn
        self._manifests: dict[str, bytes] = {}
        self._metrics: dict[str, dict[str, float]] = {}
        self._requested = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Request an update; called after a new checkpoint."""
        self._requested.set()

    def close(self) -> None:
        """Update once more and wait until that is done, at most as long as the retry policy of stores allows."""
        self._closing = True
        self._requested.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            self._requested.wait()
            self._requested.clear()
            last = self._closing
            try:
                self.sync()
            except (DataError, OSError) as error:
                self._warn(f"checkpoint.mirror: {error}. Training continues; the next checkpoint is another attempt")

    def sync(self) -> None:
        """Upload the checkpoints that are missing in the copy, the newest first, and remove those not retained.

        Raises:
            DataError: the store does not answer, or refuses.
            OSError: the folder of a local copy cannot be written.
        """
        remote = set(self._store.checkpoints())
        local = {folder.name: folder for folder in checkpoint.checkpoint_folders(self._root)}
        for name, folder in sorted(local.items(), reverse=True):
            self._metrics[name] = checkpoint.snapshot_metrics(folder)
            try:
                manifest = (folder / MANIFEST_FILE).read_bytes()
                if name not in remote or not self._is_uploaded(name, manifest):
                    self._upload(folder)
                self._manifests[name] = manifest
            except FileNotFoundError:
                if folder.exists():
                    raise
                local.pop(name)  # the run has removed it meanwhile, after newer checkpoints
        metrics = {int(name): self._metrics_of(name) for name in remote | set(local)}
        for images, reasons in self._keep.reasons(metrics).items():
            name = f"{images:012d}"
            if not reasons and name not in local:
                self._store.remove(name)

    def _is_uploaded(self, name: str, manifest: bytes) -> bool:
        return manifest in (self._manifests.get(name), self._store.read(f"{name}/{MANIFEST_FILE}"))

    def _upload(self, folder: Path) -> None:
        self._store.remove(f"{folder.name}/{MANIFEST_FILE}")
        for name in [*sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_FILE), MANIFEST_FILE]:
            self._store.put(f"{folder.name}/{name}", folder / name)

    def _metrics_of(self, name: str) -> dict[str, float]:
        """Metrics of a checkpoint, which may exist in the store only."""
        if name not in self._metrics:
            self._metrics[name] = checkpoint.metrics_in_state(self._store.read(f"{name}/{STATE_FILE}") or b"")
        return self._metrics[name]


def restore(store: CheckpointStore, root: Path, warn: Callable[[str], None]) -> int | None:
    """Download the newest good checkpoint to a run's empty folder of checkpoints.

    Args:
        warn: called with a message for every newer checkpoint that is incomplete or damaged.

    Returns:
        The images seen of the checkpoint; `None` if the store has no checkpoints.

    Raises:
        CheckpointError: the store does not answer, all checkpoints are damaged, or the local disk is full.
    """
    try:
        names = store.checkpoints()
        for name in reversed(names):
            if (problem := _download(store, name, root)) is None:
                return int(name)
            warn(f"{problem}; trying the checkpoint before it")
    except (DataError, OSError) as error:
        raise CheckpointError(
            f"checkpoint.mirror: {error}. {root.parent} has no local checkpoint, and whether the mirror has one is not "
            "known; start again when the store answers, or without checkpoint.mirror to start from scratch"
        ) from error
    if names:
        raise CheckpointError(
            f"{store}: all checkpoints there are damaged; restore a copy, or start a new run with another name"
        )
    return None


def _download(store: CheckpointStore, name: str, root: Path) -> str | None:
    """Download one checkpoint; returns what is wrong with it, `None` if it is good."""
    content = store.read(f"{name}/{MANIFEST_FILE}")
    if content is None:
        return f"{store}/{name}: has no {MANIFEST_FILE}: its upload was interrupted"
    root.mkdir(parents=True, exist_ok=True)
    checkpoint.remove_leftovers(root)
    temporary = root / f".{name}{checkpoint.UNFINISHED_SUFFIX}"
    folder = temporary / name
    folder.mkdir(parents=True)
    try:
        (folder / MANIFEST_FILE).write_bytes(content)
        for file, expected in checkpoint.manifest(folder).items():
            store.fetch(f"{name}/{file}", expected.bytes, folder / file)
        checkpoint.verify(folder)
        checkpoint.finalize(folder, root / name)
    except CheckpointError as error:
        return str(error).replace(str(folder), f"{store}/{name}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return None
