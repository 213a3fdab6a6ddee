"""Shards of a remote data set on this machine's disk: one folder for all processes, with a limit, safe under kill -9."""

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
"""Seconds between two looks at a shard that another process is downloading."""


def root() -> Path:
    """Where mtgen keeps what can be made again: `$MTGEN_CACHE`, else `~/.cache/mtgen`."""
    return Path(os.environ.get("MTGEN_CACHE") or Path.home() / ".cache" / "mtgen")


@dataclass(frozen=True)
class CachedFile:
    """A descriptor that is closed when nobody reads through it any more; reading with an offset is safe after a fork."""

    descriptor: int

    def __del__(self) -> None:
        os.close(self.descriptor)

    @property
    def gone(self) -> bool:
        """Whether the file has no name any more: its space is free only when it is closed."""
        return os.fstat(self.descriptor).st_nlink == 0


class ShardCache:
    """Whole shards, each under a name made of its URL and version, the longest unused thrown away first.

    A shard is downloaded beside its place, into a file that is locked meanwhile: others wait for it, and what a killed process
    leaves behind is unlocked, so that the next user takes it over or deletes it. A shard that is thrown away stays readable for those who
    have it open.

    Args:
        folder: on a local disk.
        limit: bytes that shards may take in all; downloads under way count.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def open(self, store: RemoteStore, name: str, version: Version) -> CachedFile:
        """A shard, downloaded now where it is not there.

        Raises:
            DataError: it cannot be had, changed since `version` was taken, or does not fit; the message says which and what to do.
        """
        if version.size > self.limit:
            raise DataError(
                f"{store}/{name}: has {version.size / GB:.3g} GB, the cache may hold data.cache_gb={self.limit / GB:.3g}; raise data.cache_gb"
            )
        key = hashlib.sha256(f"{store}/{name}\n{version.tag}".encode()).hexdigest()[:32]
        place = self.folder / f"{key}-{version.size}"
        deadline = time.monotonic() + 2 * source.RETRY_POLICY.total
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                if (file := _open(place)) is not None:
                    return file
                with _claimed(place.with_name(place.name + PART_SUFFIX)) as part:
                    if part is not None and not place.exists():
                        self._download(store, name, version, part, place)
                        continue
                if time.monotonic() > deadline:
                    raise DataError(
                        f"{store}/{name}: another process has been downloading it for too long; end that one, and start again"
                    )
                time.sleep(DOWNLOAD_POLL_SECONDS)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            why = "the disk is full" if full else error.strerror
            raise DataError(
                f"{self.folder}: cannot keep {name} ({why}); make room, point MTGEN_CACHE at another disk, or lower data.cache_gb "
                f"(now {self.limit / GB:.3g} GB)"
            ) from None

    def _download(self, store: RemoteStore, name: str, version: Version, part: Path, place: Path) -> None:
        try:
            if (now := store.version(name)) != version:
                what = "is gone" if now is None else "changed since it was indexed"
                raise DataError(
                    f"{store}/{name}: {what}; start again, and it is indexed anew (`{shell_command('mtgen shards index', store)}`)"
                )
            self._make_room()
            store.fetch(name, version.size, part)
            part.rename(place)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _make_room(self) -> None:
        """Delete what has been unused longest until everything fits, downloads under way with their whole size."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            whole, total = [], 0
            for entry in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):  # another process has finished or deleted it meanwhile
                    name = entry.name.removesuffix(PART_SUFFIX)
                    if not (size := name.rpartition("-")[2]).isdigit():
                        continue
                    if entry.name.endswith(PART_SUFFIX):
                        if not _abandoned(Path(entry.path)):
                            total += int(size)
                        continue
                    whole.append((entry.stat().st_mtime_ns, int(size), entry.path))
                    total += int(size)
            for _, length, path in sorted(whole):
                if total <= self.limit:
                    break
                Path(path).unlink(missing_ok=True)
                total -= length


def _open(place: Path) -> CachedFile | None:
    try:
        file = CachedFile(os.open(place, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return None
    os.utime(
        file.descriptor, ns=(time.time_ns(), time.time_ns())
    )  # the system's own clock for files is too coarse to tell two apart
    return file


@contextlib.contextmanager
def _claimed(part: Path) -> Iterator[Path | None]:
    """The part file while this process alone may write it; `None` where another one does."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield part if _same(descriptor, part) else None
        if _same(descriptor, part):  # claimed after another had finished: nothing was downloaded
            part.unlink(missing_ok=True)
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child that inherited the descriptor
        os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _abandoned(part: Path) -> bool:
    """Delete a part file that nobody holds; whether it was one."""
    descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same(descriptor, part):
            part.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
