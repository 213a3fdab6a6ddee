"""A real HTTP server for a folder; it counts, and can be made to fail."""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server:
    """Controls the server's faults and counts its requests.

    Attributes:
        url: URL of the folder.
        faults: file name -> the faults of its next GETs, each one of ("status", code), ("dies", bytes sent before),
            ("short", announced length), ("slow", seconds per KB) and ("busy", seconds that Retry-After names). A fault
            whose name ends in "!" repeats forever; the name "*" stands for every file.
        requests: file name -> number of GETs, failed ones included.
        heads: file name -> number of HEADs.
        ranges: file name -> number of the GETs that asked for a part.
        times: when each GET came, seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self.url = ""
        self.faults: dict[str, list[tuple[str, Any]]] = {}
        self.requests: Counter[str] = Counter()
        self.heads: Counter[str] = Counter()
        self.ranges: Counter[str] = Counter()
        self.times: list[float] = []

    def fault(self, name: str) -> tuple[str, Any] | None:
        """The fault of the next GET of a file."""
        for faults in (self.faults.get("*", []), self.faults.get(name, [])):
            if faults:
                return faults[0] if faults[0][0].endswith("!") else faults.pop(0)
        return None


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: Server, *args: Any, **kwargs: Any) -> None:
        self.state = server
        super().__init__(*args, **kwargs)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.state.heads[self.path.lstrip("/")] += 1
        super().do_HEAD()

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.state.requests[name] += 1
        self.state.times.append(time.monotonic())
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.state.ranges[name] += asked is not None
        fault = self.state.fault(name)
        if fault is None and asked is None:
            super().do_GET()
            return
        kind, amount = ("range", 0) if fault is None else (fault[0].rstrip("!"), fault[1])
        if kind in ("status", "busy"):
            self.send_response(amount if kind == "status" else 503)
            if kind == "busy":
                self.send_header("Retry-After", str(amount))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = (Path(self.directory) / name).read_bytes()
        if kind == "range" and asked is not None:
            begin, end = int(asked[1]), int(asked[2]) + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
            data = data[begin:end]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(amount if kind == "short" else len(data)))
        self.end_headers()
        if kind == "range":
            self.wfile.write(data)
            return
        self.close_connection = True
        if kind == "slow":
            for begin in range(0, len(data), 1024):
                self.wfile.write(data[begin : begin + 1024])
                time.sleep(amount)
        else:
            self.wfile.write(data[:amount])


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve `folder` on a free local port until the block ends."""
    state = Server()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore errors: in some tests the client closes the connection."""

    server = Quiet(("127.0.0.1", 0), partial(_Handler, state, directory=str(folder)))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
