"""Where a data set's files lie: a folder of this machine, or a URL of a store that fsspec knows."""

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.asyn import sync
from fsspec.callbacks import Callback

from mtgen.errors import DataError

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
"""Stores that data may lie in, and the package that reads each; nothing else is asked, so that no address can run a command."""

_VERSIONS = (
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
_PERMANENT_HTTP_ERRORS = (401, 403, 404, 410)


@dataclass(frozen=True)
class RetryPolicy:
    """How long a store is waited for.

    Attributes:
        attempts: tries of one request.
        first, longest: seconds between two of them; they double, with jitter (exponential back-off).
        stall: seconds without a byte after which a try is given up.
        total: seconds after which everything is given up.
    """

    attempts: int = 8
    first: float = 0.5
    longest: float = 20.0
    stall: float = 30.0
    total: float = 600.0


RETRY_POLICY = RetryPolicy()


@dataclass(frozen=True)
class Version:
    """What tells that a file is still the same: its size in bytes and its time or the store's own tag."""

    size: int
    tag: str


class DataSource(Protocol):
    """A folder of files; `str()` of it is what the user called it.

    Attributes:
        remote: whether its files have to be fetched.
    """

    remote: bool

    def version(self, name: str) -> Version | None:
        """A file's version, `None` where there is no such file; `DataError` where the store does not answer."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file whole, `None` where there is none."""
        ...


def is_url(path: str) -> bool:
    """Whether a path names a store and not a folder; anything with a scheme does, known or not."""
    return (
        "://" in path
        or "::" in path
        or path.startswith("|")
        or path.partition(":")[0] in {"pipe", "cmd", "file", "exec"}
    )


def absolute_location(path: str) -> str:
    """A path that means the same in every working directory; URLs stay as they are."""
    return path if is_url(path) else str(Path(path).absolute())


def open_source(path: str | Path) -> "LocalFolder | RemoteStore":
    """The source that a path or URL names.

    Raises:
        DataError: an address of another kind, such as `pipe:`, or one whose package is not installed.
    """
    text = str(path)
    if not is_url(text):
        return LocalFolder(Path(text))
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "file" and "::" not in text:
        return LocalFolder(Path(unquote(urlsplit(text).path)))
    if scheme not in STORE_PACKAGES or "::" in text:
        raise DataError(
            f"{text}: is no address that data is read from (commands are never run); "
            f"possible: a folder, or a URL that begins with {', '.join(f'{s}://' for s in STORE_PACKAGES)}"
        )
    return RemoteStore(text)


def read_file(path: str, key: str, hint: str = "") -> bytes:
    """A file, given by path or URL.

    Args:
        key: the setting that names it, for the error; `hint`: what else helps.

    Raises:
        DataError: it is not there, or cannot be read.
    """
    folder, _, name = path.rpartition("/")
    data = open_source(folder or ("/" if path.startswith("/") else ".")).read(name)
    if data is None:
        raise DataError(f"{path}: there is no such file ({key}){hint and '; '}{hint}")
    return data


class LocalFolder:
    """A folder of this machine."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() if folder.is_dir() else folder

    def __str__(self) -> str:
        return str(self.path)

    def version(self, name: str) -> Version | None:
        """Size and time of the last change."""
        path = self.path / name
        if not path.is_file():
            return None
        status = path.stat()
        return Version(status.st_size, str(status.st_mtime_ns))

    def read(self, name: str) -> bytes | None:
        """A file whole."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{self.path / name}: cannot be read ({error.strerror})") from None


class RemoteStore:
    """A folder behind a URL. Requests are repeated while there is hope (5xx, lost connections, wrong lengths), with growing pauses."""

    remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.scheme = urlsplit(url).scheme

    def __str__(self) -> str:
        return self.url

    def version(self, name: str) -> Version | None:
        """Size and the store's tag of a file.

        Raises:
            DataError: the store does not say how long the file is, or does not answer.
        """

        def ask(fs: Any, path: str) -> Version:
            info = self._call(fs, "_info", "info", path)
            if info.get("size") is None:
                raise DataError(
                    f"{self.url}/{name}: the server does not say how long it is (no Content-Length); use one that does"
                )
            return Version(int(info["size"]), next((str(info[key]) for key in _VERSIONS if info.get(key)), ""))

        return self._try(name, ask)

    def read(self, name: str) -> bytes | None:
        """A small file whole."""
        return self._try(name, lambda fs, path: bytes(self._call(fs, "_cat_file", "cat_file", path)))

    def fetch(self, name: str, size: int, out: Path) -> None:
        """Download a file of `size` bytes to `out`, over what is there.

        Raises:
            DataError: it is not there, or cannot be had whole.
            OSError: `out` cannot be written.
        """

        def get(fs: Any, path: str) -> bool:
            watch = _Watch(self._deadline(), size)
            self._call(fs, "_get_file", "get_file", path, str(out), callback=watch)
            if (length := out.stat().st_size) != size:
                raise _WrongLengthError(f"{length:,} bytes came, {size:,} should have")
            return True

        if self._try(name, get) is None:
            raise DataError(
                f"{self.url}/{name}: is not there (any more); bring it back, or start again with a corrected dataset.json"
            )

    def _deadline(self) -> float:
        return time.monotonic() + RETRY_POLICY.total

    def _files(self) -> tuple[Any, str]:
        """fsspec's file system for this thread and process, and the path in it."""
        options: dict[str, Any] = {}
        if self.scheme == "s3":  # else where it found its credentials is said among a run's own lines, by every worker
            for name in ("botocore", "aiobotocore"):
                logging.getLogger(name).setLevel(logging.WARNING)
        if self.scheme in ("http", "https"):
            import aiohttp

            limit = aiohttp.ClientTimeout(
                total=RETRY_POLICY.total, sock_connect=RETRY_POLICY.stall, sock_read=RETRY_POLICY.stall
            )
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
        """One request, ended after the total time however little trickles in."""
        if fs.async_impl:
            return sync(fs.loop, getattr(fs, coroutine), *args, timeout=RETRY_POLICY.total, **kwargs)
        return getattr(fs, blocking)(*args, **kwargs)

    def _try(self, name: str, request: Callable[[Any, str], T], what: str = "read") -> T | None:
        """`request`, again and again while it may yet succeed; `None` where the file is not there.

        Args:
            what: is done, for the message.
        """
        import tenacity  # here, so that a model is used without what stores alone need

        fs, path = self._files()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_exponential_jitter(
                multiplier=RETRY_POLICY.first, max=RETRY_POLICY.longest, jitter=RETRY_POLICY.first
            ),
            stop=tenacity.stop_after_attempt(RETRY_POLICY.attempts) | tenacity.stop_after_delay(RETRY_POLICY.total),
            reraise=True,
        )
        try:
            return retrying(request, fs, f"{path.rstrip('/')}/{name}")
        except DataError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and _local(error):
                raise
            if _missing(error):
                return None
            tried = f" after {retrying.statistics.get('attempt_number', 1)} attempts" if _is_transient(error) else ""
            remedy = (
                "look whether the server is up, then start again"
                if _is_transient(error)
                else "look at the address and who may read it"
            )
            raise DataError(f"{self.url}/{name}: cannot be {what}{tried}: {_server_message(error)}; {remedy}") from None


class _WrongLengthError(Exception):
    """A file came shorter or longer than the store had said."""


class _Watch(Callback):
    """Ends a download that takes too long or is longer than it should be."""

    def __init__(self, deadline: float, size: int) -> None:
        super().__init__()
        self.deadline = deadline
        self.most = size

    def relative_update(self, inc: int = 1) -> None:
        """Called with the bytes of each piece."""
        super().relative_update(inc)
        if time.monotonic() > self.deadline:
            raise TimeoutError(f"not whole after {RETRY_POLICY.total:g} s")
        if self.value > self.most:
            raise _WrongLengthError(f"more than the {self.most:,} bytes that it should have")


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error or in what caused it."""
    cause = error if error.__cause__ is None else error.__cause__
    status = (
        getattr(error, "status", None)
        or getattr(cause, "status", None)
        or getattr(getattr(error, "response", None), "status_code", None)
    )
    return status if isinstance(status, int) else None


def _missing(error: BaseException) -> bool:
    """No such file; fsspec says so too where a server fails, and keeps what it said as the cause."""
    if _status(error) is not None:
        return _status(error) in (404, 410)
    return isinstance(error, FileNotFoundError) and error.__cause__ is None


def _local(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR)


def _is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, DataError | PermissionError | NotADirectoryError) or _missing(error):
        return False
    if isinstance(error, OSError) and _local(error):
        return False
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def _server_message(error: BaseException) -> str:
    """What the server or its client said, in one line."""
    cause = error if error.__cause__ is None else error.__cause__
    if (status := _status(error)) is not None:
        return f"the server answered {status} {' '.join(str(getattr(cause, 'message', '')).split())}".strip()
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}{f' ({text})' if text else ''}"
