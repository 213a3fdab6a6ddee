"""A real HTTP server for a folder; it can be made to fail."""

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
            ("short", announced length) and ("slow", seconds per KB). A fault whose name ends in "!" repeats forever.
        requests: file name -> number of GETs, failed ones included.
    """

    def __init__(self) -> None:
        self.url = ""  # type: ignore[var-annotated]
        self.faults = {}
        self.requests = Counter()


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: Server, *args: Any, **kwargs: Any) -> None:
        self.state = server
        super().__init__(*args, **kwargs)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.state.requests[name] += 1
        faults = self.state.faults.get(name, [])
        fault = faults[0] if faults and faults[0][0].endswith("!") else faults.pop(0) if faults else None
        if fault is None:
            super().do_GET()
            return
        kind, amount = fault[0].rstrip("!"), fault[1]
        if kind == "status":
            self.send_response(amount)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = (Path(self.directory) / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(amount if kind == "short" else len(data)))
        self.end_headers()
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
