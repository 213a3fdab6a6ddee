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

from mtgen.errors import ChangedShard, DataError
from mtgen.storage import retries
from mtgen.storage.remote_store import RemoteStore, Version
from mtgen.utils.shell import shell_command
from mtgen.utils.system import mount_of

GB = 10**9
PART_SUFFIX = ".part"
DOWNLOAD_POLL_SECONDS = 0.05
"""Seconds between checks for a shard that another process is downloading."""


def root() -> Path:
    """The folder for files that can be made again: `$MTGEN_CACHE`, else `~/.cache/mtgen`."""
    return Path(os.environ.get("MTGEN_CACHE") or Path.home() / ".cache" / "mtgen")


NETWORK_FILE_SYSTEMS = (
    "nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "glusterfs", "fuse.glusterfs", "afs",
    "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.mount-s3", "wekafs", "pvfs2", "orangefs",
)  # fmt: skip
"""How the types of network file systems start in the list of mounts."""


def check_cache_folder(folder: Path, file_system: str) -> None:
    """Raise `DataError` if the cache would be on a network file system.

    All nodes would write their shards into it, evict each other's, and read each byte over the network twice.

    Args:
        file_system: type of the file system, such as "ext4".
    """
    if file_system.startswith(NETWORK_FILE_SYSTEMS):
        raise DataError(
            f"{folder}: is on a network file system ({file_system}), where nodes would evict each other's shards and "
            "read every byte over the network twice; set MTGEN_CACHE to a folder on a local disk of each node"
        )


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
        check_cache_folder(folder, mount_of(folder)[0])
        self.folder = folder
        self.limit = limit

    def path(self, store: RemoteStore, name: str, version: Version) -> Path:
        """The file of a shard in the cache."""
        key = hashlib.sha256(f"{store}/{name}\n{version.tag}".encode()).hexdigest()[:32]
        return self.folder / f"{key}-{version.size}"

    def find(self, store: RemoteStore, name: str, version: Version) -> CachedFile | None:
        """Open a shard that is in the cache; `None` if it is not."""
        return _open(self.path(store, name, version))

    def open(self, store: RemoteStore, name: str, version: Version, sha256: str = "") -> CachedFile:
        """Open a shard, after downloading it if it is not in the cache.

        Args:
            sha256: of the whole shard (hexadecimal), compared after the download; default: not known.

        Raises:
            ChangedShard: it has changed since `version` was read.
            Unreachable: the store does not answer.
            DataError: it cannot be downloaded, or does not fit into the cache.
        """
        if version.size > self.limit:
            raise DataError(
                f"{store}/{name}: has {version.size / GB:.3g} GB, more than data.cache_gb={self.limit / GB:.3g}; "
                "raise data.cache_gb"
            )
        path = self.path(store, name, version)
        deadline = time.monotonic() + 2 * (retries.RETRY_POLICY.total + (store.patience or 0))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                if (file := _open(path)) is not None:
                    return file
                with _claimed(path.with_name(path.name + PART_SUFFIX)) as part:
                    if part is not None and not path.exists():
                        self._download(store, name, version, sha256, part, path)
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

    def _download(self, store: RemoteStore, name: str, version: Version, sha256: str, part: Path, path: Path) -> None:
        try:
            self._make_room()
            try:
                store.fetch(name, version.size, part)
                if sha256 and file_sha256(part) != sha256:
                    _raise_other_bytes(store, name, version)
            except ChangedShard as error:
                command = shell_command("mtgen shards index", store)
                raise ChangedShard(f"{error}; start again, or run `{command}` to index it again") from None
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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _raise_other_bytes(store: RemoteStore, name: str, version: Version) -> None:
    """Raise the error of a shard whose bytes differ from those that were indexed."""
    if store.version(name) != version:
        raise ChangedShard(f"{store}/{name}: changed since it was indexed")
    raise ChangedShard(f"{store}/{name}: the bytes received differ from those that were indexed (SHA-256)")


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
