"""A store at a URL, as far as data sets need it: read, download, write, list. fsspec makes the requests."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import sync
from fsspec.callbacks import Callback

from mtgen.errors import ChangedShard, DataError
from mtgen.storage import retries
from mtgen.storage.retries import WrongLengthError

T = TypeVar("T")

STORE_PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "memory": "fsspec",
}
"""URL scheme of a store -> the package that reads it. Other schemes are refused, so that no URL can run a command."""

_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "generation",
    "blob_id",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


RANGE_BYTES = 16 << 20
"""Larger files are downloaded in parts of this size, several at the same time."""

RANGES_AT_ONCE = 8
"""Parts of one file that are downloaded at the same time."""


class ByteBudget:
    """Limits the bytes that this process has requested from stores and not yet written, over all its threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Wait until `count` bytes (at most the limit) are free, and hold them inside the `with` block."""
        count = min(count, self.limit)
        with self._changed:
            self._changed.wait_for(lambda: self._used + count <= self.limit)
            self._used += count
        try:
            yield
        finally:
            with self._changed:
                self._used -= count
                self._changed.notify_all()


IN_FLIGHT = ByteBudget(16 * RANGE_BYTES)
"""256 MiB: enough for 16 requests at the same time, which fill a fast network, and small beside a node's memory."""


@dataclass(frozen=True)
class Version:
    """Identifies the version of a file: its size in bytes, and its modification time or the store's tag."""

    size: int
    tag: str


class RemoteStore:
    """A folder at a URL. Requests are repeated for `patience` seconds while the store does not answer or is busy.

    Args:
        patience: seconds; default: that of `RETRY_POLICY`.
    """

    remote = True

    def __init__(self, url: str, patience: float | None = None) -> None:
        self.url = url.rstrip("/")
        self.scheme = urlsplit(url).scheme
        self.patience = patience
        self._has_ranges = True

    def __str__(self) -> str:
        return self.url

    @property
    def writable(self) -> bool:
        """Whether the store can be written to, as far as its scheme tells."""
        return self.scheme not in ("http", "https")

    def version(self, name: str) -> Version | None:
        """Size of a file and the store's tag; `None` if it does not exist.

        Raises:
            DataError: the store does not report the size of the file, or refuses.
            Unreachable: the store does not answer.
        """

        def request(fs: Any, path: str) -> Version:
            info = self._call(fs, "_info", "info", path)
            if info.get("size") is None:
                raise DataError(
                    f"{self.url}/{name}: the server does not report its size (no Content-Length); use one that does"
                )
            return Version(int(info["size"]), next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), ""))

        return self._retry(name, request)

    def read(self, name: str) -> bytes | None:
        """Read a whole small file; `None` if it does not exist."""
        options = {"max_concurrency": 1} if self.scheme == "s3" else {}  # else s3fs first asks for the size
        return self._retry(name, lambda fs, path: bytes(self._call(fs, "_cat_file", "cat_file", path, **options)))

    def fetch(self, name: str, size: int, out: Path) -> None:
        """Download a file of `size` bytes and overwrite `out`; a large one in parts, several at the same time.

        Raises:
            ChangedShard: it does not exist, or has another size.
            Unreachable: it cannot be downloaded completely.
            OSError: `out` cannot be written.
        """
        if size > 2 * RANGE_BYTES and self._has_ranges and self._files()[0].async_impl:
            try:
                self._fetch_ranges(name, size, out)
                return
            except _NoRangesError:
                self._has_ranges = False

        def request(fs: Any, path: str) -> bool:
            callback = _DownloadLimit(time.monotonic() + retries.RETRY_POLICY.total, size)
            with IN_FLIGHT.reserve(min(size, RANGE_BYTES)):
                self._call(fs, "_get_file", "get_file", path, str(out), callback=callback)
            if (length := out.stat().st_size) != size:
                self._check_size(fs, path, name, size)
                raise WrongLengthError(f"received {length:,} bytes instead of {size:,}")
            return True

        if self._retry(name, request) is None:
            self._raise_missing(name)

    def _fetch_ranges(self, name: str, size: int, out: Path) -> None:
        """Download a file in parts.

        Raises:
            _NoRangesError: the store ignores ranges.
        """
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

        def fetch_range(begin: int) -> bool | None:
            end = min(begin + RANGE_BYTES, size)

            def request(fs: Any, path: str) -> bool:
                with IN_FLIGHT.reserve(end - begin):
                    data = self._call(fs, "_cat_file", "cat_file", path, start=begin, end=end)
                    if len(data) == size:
                        raise _NoRangesError(name)
                    if len(data) != end - begin:
                        self._check_size(fs, path, name, size)
                        raise WrongLengthError(f"received {len(data):,} bytes instead of {end - begin:,}")
                    os.pwrite(descriptor, data, begin)
                return True

            return self._retry(name, request)

        try:
            os.ftruncate(descriptor, size)
            with ThreadPoolExecutor(RANGES_AT_ONCE, "mtgen range") as pool:
                done = [pool.submit(fetch_range, begin) for begin in range(0, size, RANGE_BYTES)]
                try:
                    if not all(future.result() for future in done):
                        self._raise_missing(name)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            os.close(descriptor)

    def _check_size(self, fs: Any, path: str, name: str, size: int) -> None:
        """Raise `ChangedShard` if the file has another size by now."""
        now = self._call(fs, "_info", "info", path).get("size")
        if now is not None and int(now) != size:
            raise ChangedShard(
                f"{self.url}/{name}: changed since it was indexed (it had {size:,} bytes and has {int(now):,})"
            )

    def _raise_missing(self, name: str) -> None:
        raise ChangedShard(f"{self.url}/{name}: does not exist (any more); restore it, or correct dataset.json")

    def write(self, name: str, content: bytes) -> None:
        """Write a small file; stores replace files atomically."""

        def request(fs: Any, path: str) -> bool:
            self._call(fs, "_pipe_file", "pipe_file", path, content)
            return True

        self._put(name, request)

    def put(self, name: str, file: Path) -> None:
        """Upload a file, replacing one of the same name.

        Raises:
            DataError: the store refuses it.
            Unreachable: the store does not answer.
            OSError: `file` cannot be read.
        """

        def request(fs: Any, path: str) -> bool:
            self._call(fs, "_put_file", "put_file", str(file), path)
            return True

        self._put(name, request)

    def _put(self, name: str, request: Callable[[Any, str], bool]) -> None:
        if self._retry(name, request, "written") is None:
            raise DataError(f"{self.url}/{name}: cannot be written: the store answers that it does not exist")

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder of the store, without the folder; none if it does not exist."""

        def request(fs: Any, path: str) -> list[str]:
            fs.invalidate_cache()
            entries = self._call(fs, "_ls", "ls", path.rstrip("/"), detail=False)
            return [str(entry).rstrip("/").rpartition("/")[2] for entry in entries]

        return set(self._retry(folder, request) or [])

    def remove(self, name: str) -> None:
        """Remove a file or folder; a missing one is not an error."""
        self._retry(name, lambda fs, path: self._call(fs, "_rm", "rm", path, recursive=True), "removed")

    def _files(self) -> tuple[Any, str]:
        """fsspec's file system for this thread and process, and the path of the folder in it."""
        options: dict[str, Any] = {}
        if self.scheme == "s3":  # otherwise every worker logs where it found the credentials
            for name in ("botocore", "aiobotocore"):
                logging.getLogger(name).setLevel(logging.WARNING)
        if self.scheme in ("http", "https"):
            import aiohttp

            policy = retries.RETRY_POLICY
            limit = aiohttp.ClientTimeout(total=policy.total, sock_connect=policy.stall, sock_read=policy.stall)
            options["client_kwargs"] = {"timeout": limit}
        try:
            fs, path = fsspec.core.url_to_fs(self.url, **options)
        except ImportError:
            package = STORE_PACKAGES[self.scheme]
            raise DataError(
                f"{self.url}: {self.scheme}:// needs the package {package}: pip install {package}"
            ) from None
        return fs, path

    def _call(self, fs: Any, coroutine: str, blocking: str, *args: Any, **kwargs: Any) -> Any:
        """Make one request, with a time limit even if data keeps trickling in."""
        if fs.async_impl:
            return sync(fs.loop, getattr(fs, coroutine), *args, timeout=retries.RETRY_POLICY.total, **kwargs)
        return getattr(fs, blocking)(*args, **kwargs)

    def _retry(self, name: str, request: Callable[[Any, str], T], action: str = "read") -> T | None:
        """See `retries.retry`; `request` is called with fsspec's file system and the path of file `name` in it."""
        fs, path = self._files()
        patience = retries.RETRY_POLICY.patience if self.patience is None else self.patience
        return retries.retry(f"{self.url}/{name}", lambda: request(fs, f"{path.rstrip('/')}/{name}"), patience, action)


class _NoRangesError(DataError):
    """A store sends whole files whatever range is requested."""


class _DownloadLimit(Callback):
    """Ends a download that takes too long or is larger than expected."""

    def __init__(self, deadline: float, size: int) -> None:
        super().__init__()
        self.deadline = deadline
        self.max_bytes = size

    def relative_update(self, inc: int = 1) -> None:
        """Called with the number of bytes of each chunk."""
        super().relative_update(inc)
        if time.monotonic() > self.deadline:
            raise TimeoutError(f"not complete after {retries.RETRY_POLICY.total:g} s")
        if self.value > self.max_bytes:
            raise WrongLengthError(f"received more than the expected {self.max_bytes:,} bytes")
