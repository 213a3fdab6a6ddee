"""The fetcher: one process per node that downloads shards into the node's cache and checks them.

Programs that read shards only open files. They ask the fetcher over a Unix socket in the cache's folder, and start it
if it does not run. The kernel's lock on a file decides which of several is the one; it ends with the last program that
uses it, however that ended. A request is a line of JSON; so is the answer, after any number of warnings.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from mtgen.errors import ChangedShard, DataError, Unreachable
from mtgen.storage import retries
from mtgen.storage.remote_store import RemoteStore, Version
from mtgen.storage.retries import RetryPolicy
from mtgen.storage.shard_cache import CachedFile, ShardCache
from mtgen.version import PACKAGE

SOCKET = "fetcher.sock"
LOG = "fetcher.log"

FETCHED_AHEAD = 4
"""Shards that are downloaded at the same time before anybody waits for them."""

START_SECONDS = 60.0
"""Longest time that the process takes to start, and waits for its first client."""

IDLE_SECONDS = 2.0
"""The process ends so long after its last client."""

MAX_DEATHS = 5
"""How often the process may end during one request."""

_KINDS: dict[str, type[DataError]] = {kind.__name__: kind for kind in (ChangedShard, Unreachable, DataError)}


@dataclass(frozen=True)
class ShardRequest:
    """A shard to download.

    Attributes:
        url, name, size, tag: where the shard is, and its version.
        sha256: of the whole shard; "" if it is not known.
        limit: size of the cache, bytes.
        patience: seconds to keep trying while the store does not answer.
        wait: whether the client waits for an answer; otherwise the shard is fetched ahead of its use.
    """

    url: str
    name: str
    size: int
    tag: str
    sha256: str
    limit: int
    patience: float | None
    wait: bool = True


class Fetcher:
    """A client of the node's fetcher. Safe to use in threads and after a fork.

    Args:
        folder: folder of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = 0
        self._open: socket.socket | None = None
        self._lock = threading.Lock()

    def fetch(self, cache: ShardCache, store: RemoteStore, name: str, version: Version, sha256: str) -> CachedFile:
        """Open a shard of the cache, after the fetcher has downloaded it if it is not there.

        Raises:
            DataError: as `ShardCache.open`; or the fetcher ends again and again.
        """
        if store.scheme == "memory":  # the memory of another process is not this one's
            return cache.open(store, name, version, sha256)
        request = ShardRequest(str(store), name, version.size, version.tag, sha256, cache.limit, store.patience)
        deaths = 0
        while (file := cache.find(store, name, version)) is None:
            try:
                self._stay_connected()
                answered = self._ask(request)
            except OSError:
                answered = False
            deaths += not answered
            if deaths > MAX_DEATHS:
                raise DataError(
                    f"{store}/{name}: the process that downloads shards has ended {deaths} times; "
                    f"{self.folder / LOG} may say why"
                )
        return file

    def fetch_ahead(self, cache: ShardCache, store: RemoteStore, shards: Iterable[tuple[str, Version, str]]) -> None:
        """Ask for shards that will be read soon, as (name, version, SHA-256); errors are left to `fetch`."""
        requests = [
            ShardRequest(str(store), name, version.size, version.tag, sha256, cache.limit, store.patience, wait=False)
            for name, version, sha256 in shards
            if not cache.path(store, name, version).exists()
        ]
        if requests and store.scheme != "memory":
            with contextlib.suppress(OSError):
                self._stay_connected().sendall(b"".join(map(_line, map(asdict, requests))))

    def close(self) -> None:
        """Tell the fetcher that this process does not need it any more."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def __del__(self) -> None:
        self.close()

    def _ask(self, request: ShardRequest) -> bool:
        """Wait for the answer to a request; `False` if the fetcher ended meanwhile."""
        with contextlib.closing(_connect(self.folder)) as connection:
            connection.sendall(_line(asdict(request)))
            for line in connection.makefile("r", encoding="utf-8"):
                answer = json.loads(line)
                if "warning" in answer:
                    retries.log.warning("%s", answer["warning"])
                elif "error" in answer:
                    raise _KINDS[answer["error"]](answer["message"])
                else:
                    return True
        return False

    def _stay_connected(self) -> socket.socket:
        """The connection that keeps the fetcher alive as long as this process; starts the fetcher if necessary."""
        with self._lock:
            if self._open is not None and self._process == os.getpid() and _is_alive(self._open):
                return self._open
            self._open, self._process = _connect_or_start(self.folder), os.getpid()
            return self._open


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _is_alive(connection: socket.socket) -> bool:
    """Whether the other end of a connection on which it never sends is still open."""
    try:
        return connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _connect(folder: Path) -> socket.socket:
    """Connect to the fetcher of a folder; `OSError` if there is none."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"/proc/self/fd/{descriptor}/{SOCKET}")  # paths of sockets have at most 107 bytes
    except OSError:
        connection.close()
        raise
    finally:
        os.close(descriptor)
    return connection


def _connect_or_start(folder: Path) -> socket.socket:
    """Connect to the fetcher of a folder; the first process of a node that needs it starts it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress_absent():
            return _connect(folder)
        with (folder / "fetcher.start").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress_absent():
                return _connect(folder)
            process, end = _start(folder), time.monotonic() + START_SECONDS
            while time.monotonic() < end and not process.poll():
                with suppress_absent():
                    return _connect(folder)
                time.sleep(0.02)
                if process.poll() == 0:  # another one was just ending
                    process = _start(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: the process that downloads shards cannot be reached ({error.strerror}); "
            "set MTGEN_CACHE to a folder of yours on a local disk"
        ) from None
    raise DataError(f"{folder}: the process that downloads shards does not start; {folder / LOG} may say why")


@contextlib.contextmanager
def suppress_absent() -> Iterator[None]:
    """Ignore that no fetcher listens."""
    with contextlib.suppress(FileNotFoundError, ConnectionError):
        yield


_started: list["subprocess.Popen[bytes]"] = []
"""Fetchers that this process has started: they outlive it if others use them."""


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mtgen.storage.fetcher", str(folder), json.dumps(asdict(retries.RETRY_POLICY))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,  # not this process's: a pipe there would stay open after its end
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C in a terminal is for the trainer, which still saves a checkpoint
        )
    _started[:] = [other for other in _started if other.poll() is None] + [process]
    return process


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens in the current folder, which is the cache's.

    Attributes:
        clients: number of open connections.
        waiting: connections on which a client waits for an answer, the oldest first.
    """

    daemon_threads = True

    def __init__(self) -> None:
        Path(SOCKET).unlink(missing_ok=True)
        self.clients = 0
        self.waiting: dict[socket.socket, None] = {}
        self.lock = threading.Lock()
        self.ahead = ThreadPoolExecutor(FETCHED_AHEAD, "ahead")
        super().__init__(SOCKET, _Connection)

    def warn(self, text: str) -> None:
        """Send a warning to one of the clients that wait."""
        with self.lock:
            for connection in self.waiting:
                with contextlib.suppress(OSError):
                    connection.sendall(_line({"warning": text}))
                    return


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Answer the requests of one connection until the client closes it."""
        ahead: list[Future[None]] = []
        with self.server.lock:
            self.server.clients += 1
        try:
            for line in self.rfile:
                request = ShardRequest(**json.loads(line))
                if request.wait:
                    self._answer(request)
                else:
                    ahead = [future for future in ahead if not future.done()]
                    ahead.append(self.server.ahead.submit(_download_ahead, request))
        except OSError:
            pass  # the client has ended
        finally:
            for future in ahead:
                future.cancel()
            with self.server.lock:
                self.server.clients -= 1

    def _answer(self, request: ShardRequest) -> None:
        with self.server.lock:
            self.server.waiting[self.connection] = None
        answer = {}
        try:
            _download(request)
        except DataError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        finally:
            with self.server.lock:
                del self.server.waiting[self.connection]
        self.connection.sendall(_line(answer))


def _download(request: ShardRequest) -> None:
    store = RemoteStore(request.url, request.patience)
    ShardCache(Path.cwd(), request.limit).open(store, request.name, Version(request.size, request.tag), request.sha256)


def _download_ahead(request: ShardRequest) -> None:
    with contextlib.suppress(DataError):  # a client that needs the shard gets the error
        _download(request)


class _Warnings(logging.Handler):
    """Passes warnings about unreachable stores to a client that waits."""

    def __init__(self, server: _Server) -> None:
        super().__init__()
        self.server = server

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record to a client."""
        self.server.warn(record.getMessage())


def main(folder: str, policy: str) -> None:
    """Serve the requests of this node until nobody needs it; at once if another process does so."""
    os.chdir(folder)
    retries.RETRY_POLICY = RetryPolicy(**json.loads(policy))
    with _claimed(Path("fetcher.lock")) as lock:
        if lock is None:
            return
        with _Server() as server:
            retries.log.addHandler(_Warnings(server))
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()
            needed = time.monotonic() + START_SECONDS - IDLE_SECONDS
            while time.monotonic() - needed < IDLE_SECONDS:
                time.sleep(0.1)
                if server.clients:
                    needed = time.monotonic()
            Path(SOCKET).unlink(missing_ok=True)
            os._exit(0)  # without waiting for downloads that nobody needs


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[TextIO | None]:
    """Lock a file until this process ends; `None` if another process has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


if __name__ == "__main__":
    main(*sys.argv[1:])
