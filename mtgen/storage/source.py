"""Where the files of a data set are: a local folder, or the URL of a store that fsspec supports."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from mtgen.errors import DataError
from mtgen.storage.remote_store import STORE_PACKAGES, RemoteStore, Version


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

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, which is complete whenever it can be read."""
        ...

    def put(self, name: str, file: Path) -> None:
        """Copy a local file to `name`, replacing one that exists."""
        ...

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder of the source, without the folder; none if it does not exist."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or folder; a missing one is not an error."""
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


def open_source(path: str | Path, patience: float | None = None) -> "LocalFolder | RemoteStore":
    """Open a folder, given by path or URL.

    Args:
        patience: seconds to keep trying while a store does not answer; default: that of `RETRY_POLICY`.

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
    return RemoteStore(text, patience)


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

    def write(self, name: str, content: bytes) -> None:
        """Write a small file to a temporary one and rename it."""
        with self._replacing(name) as temporary:
            temporary.write_bytes(content)

    def put(self, name: str, file: Path) -> None:
        """Copy a file to a temporary one and rename it."""
        with self._replacing(name) as temporary:
            shutil.copyfile(file, temporary)

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, text = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(descriptor)
            temporary = Path(text)
            try:
                yield temporary
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from None

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder of this one; none if it does not exist."""
        try:
            return {path.name for path in (self.path / folder).iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def remove(self, name: str) -> None:
        """Remove a file or folder; a missing one is not an error."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _umask() -> int:
    """The permissions that this process withholds from new files; `mkstemp` withholds more."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
