"""A real S3-compatible server that counts, can answer 503, be stopped and be started again."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class S3:
    """The server.

    Attributes:
        failures: how many of the next uploads are answered with 503.
        requests: (method, path of the object) -> number of requests.
    """

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.failures = 0
        self.requests: Counter[tuple[str, str]] = Counter()
        self._app = DomainDispatcherApplication(create_backend_app)
        self.start()

    def _answer(self, environ: Any, start: Any) -> Any:
        self.requests[environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/")] += 1
        if self.failures and environ["REQUEST_METHOD"] == "PUT":
            self.failures -= 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Service Unavailable", [("Content-Length", "0")])
            return []
        return self._app(environ, start)

    def start(self) -> None:
        """Listen on the server's port."""
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The server with an empty bucket `bucket`, where this process's S3 client finds it."""
    server = S3()
    variables = {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1", "MAX_ATTEMPTS": "1"}
    for name, value in {**variables, "ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    files = fsspec.filesystem("s3")
    if files.exists("bucket"):  # moto keeps the content for the whole process
        files.rm("bucket", recursive=True)
    files.mkdir("bucket")
    server.requests.clear()
    yield server
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
