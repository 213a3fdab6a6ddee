"""The cache of remote shards on the local disk: one size-limited folder for all processes, safe under kill -9."""

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mtgen.errors import DataError
from mtgen.storage import source
from mtgen.storage.source import RemoteStore, Version
from mtgen.utils.shell import shell_command

GB = 10**9
PART_SUFFIX = ".part"
DOWNLOAD_POLL_SECONDS = 0.05
"""Seconds between checks for a shard that another process is downloading."""


def root() -> Path:
    """The folder for files that can be made again: `$MTGEN_CACHE`, else `~/.cache/mtgen`."""
    return Path(os.environ.get("MTGEN_CACHE") or Path.home() / ".cache" / "mtgen")


@dataclass(frozen=True)
class CachedFile:
    """A file descriptor that is closed with its last reference; reads at an offset are safe after a fork."""

    descriptor: int

    def __del__(self) -> None:
        os.close(self.descriptor)

    @property
    def gone(self) -> bool:
        """Whether the file has been deleted; its space is freed when it is closed."""
        return os.fstat(self.descriptor).st_nlink == 0


class ShardCache:
    """Complete shards, named by URL and version; the least recently used ones are evicted first.

    A shard is downloaded to a part file that stays locked meanwhile, so that other processes wait for it. A killed
    process leaves its part file unlocked, and the next user takes it over or deletes it. An evicted shard stays
    readable for processes that have it open.

    Args:
        folder: folder on a local disk.
        limit: largest total size of the shards, bytes; downloads in progress count.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def open(self, store: RemoteStore, name: str, version: Version) -> CachedFile:
        """Open a shard, after downloading it if it is not in the cache.

        Raises:
            DataError: it cannot be downloaded, has changed since `version` was read, or does not fit into the cache.
        """
        if version.size > self.limit:
            raise DataError(
                f"{store}/{name}: has {version.size / GB:.3g} GB, more than data.cache_gb={self.limit / GB:.3g}; "
                "raise data.cache_gb"
            )
        key = hashlib.sha256(f"{store}/{name}\n{version.tag}".encode()).hexdigest()[:32]
        path = self.folder / f"{key}-{version.size}"
        deadline = time.monotonic() + 2 * source.RETRY_POLICY.total
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                if (file := _open(path)) is not None:
                    return file
                with _claimed(path.with_name(path.name + PART_SUFFIX)) as part:
                    if part is not None and not path.exists():
                        self._download(store, name, version, part, path)
                        continue
                if time.monotonic() > deadline:
                    raise DataError(
                        f"{store}/{name}: another process has been downloading it for too long; end it and start again"
                    )
                time.sleep(DOWNLOAD_POLL_SECONDS)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            reason = "the disk is full" if full else error.strerror
            raise DataError(
                f"{self.folder}: cannot store {name} ({reason}); free disk space, set MTGEN_CACHE to another disk, "
                f"or lower data.cache_gb (now {self.limit / GB:.3g} GB)"
            ) from None

    def _download(self, store: RemoteStore, name: str, version: Version, part: Path, path: Path) -> None:
        try:
            if (now := store.version(name)) != version:
                problem = "does not exist any more" if now is None else "changed since it was indexed"
                command = shell_command("mtgen shards index", store)
                raise DataError(f"{store}/{name}: {problem}; start again, or run `{command}` to index it again")
            self._make_room()
            store.fetch(name, version.size, part)
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _make_room(self) -> None:
        """Evict the least recently used shards until the rest fits; unfinished downloads count with their full size."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shards, total = [], 0
            for entry in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):  # another process has just finished or deleted it
                    name = entry.name.removesuffix(PART_SUFFIX)
                    if not (size := name.rpartition("-")[2]).isdigit():
                        continue
                    if entry.name.endswith(PART_SUFFIX):
                        if not _delete_abandoned(Path(entry.path)):
                            total += int(size)
                        continue
                    shards.append((entry.stat().st_mtime_ns, int(size), entry.path))
                    total += int(size)
            for _, shard_size, path in sorted(shards):
                if total <= self.limit:
                    break
                Path(path).unlink(missing_ok=True)
                total -= shard_size


def _open(path: Path) -> CachedFile | None:
    try:
        file = CachedFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return None
    now = time.time_ns()  # the kernel's clock for file times is too coarse to order two uses
    os.utime(file.descriptor, ns=(now, now))
    return file


@contextlib.contextmanager
def _claimed(part: Path) -> Iterator[Path | None]:
    """Lock a part file for this process; yields its path, or `None` if another process has the lock."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield part if _is_open_at(descriptor, part) else None
        if _is_open_at(descriptor, part):  # another process had finished before: nothing was downloaded
            part.unlink(missing_ok=True)
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # explicitly: a child process may have inherited the descriptor
        os.close(descriptor)


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _delete_abandoned(part: Path) -> bool:
    """Delete a part file that no process has locked; returns whether it was abandoned."""
    descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_open_at(descriptor, part):
            part.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
