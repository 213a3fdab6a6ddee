"""A real HTTP server over a folder that can be told to fail."""

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
    """What the server does, and what it was asked.

    Attributes:
        url: of the folder.
        faults: what goes wrong with a file's next GETs: ("status", 500), ("dies", bytes), ("short", bytes), ("slow", seconds a KB).
        asked: file name -> finished and failed GETs.
    """

    def __init__(self) -> None:
        self.url = ""  # type: ignore[var-annotated]
        self.faults = {}
        self.asked = Counter()


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: Server, *args: Any, **kwargs: Any) -> None:
        self.state = server
        super().__init__(*args, **kwargs)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.state.asked[name] += 1
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
    """A server over `folder` on a free port of this machine, until the block ends."""
    state = Server()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that has gone away is what some tests are about."""

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
