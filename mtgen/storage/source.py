"""Where the files of a data set are: a local folder, or the URL of a store that fsspec supports."""

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


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request to a store is repeated, and how long.

    Attributes:
        attempts: largest number of attempts.
        first, longest: first and longest pause between attempts, seconds; pauses double, with jitter.
        stall: seconds without a byte after which an attempt is given up.
        total: seconds after which the request is given up.
    """

    attempts: int = 8
    first: float = 0.5
    longest: float = 20.0
    stall: float = 30.0
    total: float = 600.0


RETRY_POLICY = RetryPolicy()


@dataclass(frozen=True)
class Version:
    """Identifies the version of a file: its size in bytes, and its modification time or the store's tag."""

    size: int
    tag: str


class DataSource(Protocol):
    """A folder of files; `str()` gives the path or URL.

    Attributes:
        remote: whether its files have to be downloaded.
    """

    remote: bool

    def version(self, name: str) -> Version | None:
        """The version of a file, `None` if it does not exist; `DataError` if the store does not answer."""
        ...

    def read(self, name: str) -> bytes | None:
        """Read a whole small file; `None` if it does not exist."""
        ...


def is_url(path: str) -> bool:
    """Whether a path is a URL: anything with a scheme, known or not."""
    return (
        "://" in path
        or "::" in path
        or path.startswith("|")
        or path.partition(":")[0] in {"pipe", "cmd", "file", "exec"}
    )


def absolute_location(path: str) -> str:
    """Make a path absolute; URLs are returned unchanged."""
    return path if is_url(path) else str(Path(path).absolute())


def open_source(path: str | Path) -> "LocalFolder | RemoteStore":
    """Open a folder, given by path or URL.

    Raises:
        DataError: a URL with another scheme, such as `pipe:`.
    """
    text = str(path)
    if not is_url(text):
        return LocalFolder(Path(text))
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "file" and "::" not in text:
        return LocalFolder(Path(unquote(urlsplit(text).path)))
    if scheme not in STORE_PACKAGES or "::" in text:
        raise DataError(
            f"{text}: not a supported URL (commands are never run); "
            f"possible: a folder, or a URL that starts with {', '.join(f'{s}://' for s in STORE_PACKAGES)}"
        )
    return RemoteStore(text)


def read_file(path: str, key: str, hint: str = "") -> bytes:
    """Read a file, given by path or URL.

    Args:
        key: configuration key that names the file, for the error.
        hint: an additional remedy for the error.

    Raises:
        DataError: the file does not exist or cannot be read.
    """
    folder, _, name = path.rpartition("/")
    data = open_source(folder or ("/" if path.startswith("/") else ".")).read(name)
    if data is None:
        raise DataError(f"{path}: the file does not exist ({key}){hint and '; '}{hint}")
    return data


class LocalFolder:
    """A local folder."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() if folder.is_dir() else folder

    def __str__(self) -> str:
        return str(self.path)

    def version(self, name: str) -> Version | None:
        """Size and modification time of a file."""
        path = self.path / name
        if not path.is_file():
            return None
        status = path.stat()
        return Version(status.st_size, str(status.st_mtime_ns))

    def read(self, name: str) -> bytes | None:
        """Read a whole file; `None` if it does not exist."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{self.path / name}: cannot be read ({error.strerror})") from None


class RemoteStore:
    """A folder at a URL. Requests are retried after transient errors: 5xx, lost connections, wrong lengths."""

    remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.scheme = urlsplit(url).scheme

    def __str__(self) -> str:
        return self.url

    def version(self, name: str) -> Version | None:
        """Size of a file and the store's tag; `None` if it does not exist.

        Raises:
            DataError: the store does not report the size of the file, or does not answer.
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
        return self._retry(name, lambda fs, path: bytes(self._call(fs, "_cat_file", "cat_file", path)))

    def fetch(self, name: str, size: int, out: Path) -> None:
        """Download a file of `size` bytes and overwrite `out`.

        Raises:
            DataError: it does not exist, or cannot be downloaded completely.
            OSError: `out` cannot be written.
        """

        def request(fs: Any, path: str) -> bool:
            callback = _DownloadLimit(self._deadline(), size)
            self._call(fs, "_get_file", "get_file", path, str(out), callback=callback)
            if (length := out.stat().st_size) != size:
                raise _WrongLengthError(f"received {length:,} bytes instead of {size:,}")
            return True

        if self._retry(name, request) is None:
            raise DataError(f"{self.url}/{name}: does not exist (any more); restore it, or correct dataset.json")

    def _deadline(self) -> float:
        return time.monotonic() + RETRY_POLICY.total

    def _files(self) -> tuple[Any, str]:
        """fsspec's file system for this thread and process, and the path of the folder in it."""
        options: dict[str, Any] = {}
        if self.scheme == "s3":  # otherwise every worker logs where it found the credentials
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
        """Make one request, with a time limit even if data keeps trickling in."""
        if fs.async_impl:
            return sync(fs.loop, getattr(fs, coroutine), *args, timeout=RETRY_POLICY.total, **kwargs)
        return getattr(fs, blocking)(*args, **kwargs)

    def _retry(self, name: str, request: Callable[[Any, str], T], action: str = "read") -> T | None:
        """Repeat `request` until it succeeds or fails permanently; `None` if the file does not exist.

        Args:
            action: past participle of what the request does, for the error.
        """
        import tenacity  # imported here: only remote stores need it

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
                "check that the server is up, then start again"
                if _is_transient(error)
                else "check the URL and its access permissions"
            )
            raise DataError(
                f"{self.url}/{name}: cannot be {action}{tried}: {_server_message(error)}; {remedy}"
            ) from None


class _WrongLengthError(Exception):
    """A file is shorter or longer than the store reported."""


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
            raise TimeoutError(f"not complete after {RETRY_POLICY.total:g} s")
        if self.value > self.max_bytes:
            raise _WrongLengthError(f"received more than the expected {self.max_bytes:,} bytes")


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error or of its cause."""
    cause = error if error.__cause__ is None else error.__cause__
    status = (
        getattr(error, "status", None)
        or getattr(cause, "status", None)
        or getattr(getattr(error, "response", None), "status_code", None)
    )
    return status if isinstance(status, int) else None


def _missing(error: BaseException) -> bool:
    """Whether a file does not exist; fsspec also raises `FileNotFoundError` for other failures, with a cause."""
    if _status(error) is not None:
        return _status(error) in (404, 410)
    return isinstance(error, FileNotFoundError) and error.__cause__ is None


def _local(error: OSError) -> bool:
    """Whether an error is about the local disk."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR)


def _is_transient(error: BaseException) -> bool:
    """Whether another attempt could succeed."""
    if isinstance(error, DataError | PermissionError | NotADirectoryError) or _missing(error):
        return False
    if isinstance(error, OSError) and _local(error):
        return False
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def _server_message(error: BaseException) -> str:
    """The message of the server or of its client, in one line."""
    cause = error if error.__cause__ is None else error.__cause__
    if (status := _status(error)) is not None:
        return f"the server answered {status} {' '.join(str(getattr(cause, 'message', '')).split())}".strip()
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}{f' ({text})' if text else ''}"
