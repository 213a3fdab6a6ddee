"""A Jobs API that does not answer is one clear error, at the first request and later."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from mtgen.errors import UserError
from mtgen.launchers import ray_jobs

RUNNING = {
    "submission_id": "run-1",
    "job_id": None,
    "type": "SUBMISSION",
    "entrypoint": "true",
    "status": "RUNNING",
    "metadata": {},
}
ANSWERS = {
    "/api/version": {"ray_version": ray.__version__},
    "/api/jobs/run-1": RUNNING,
    "/api/jobs/run-1/stop": {"stopped": True},
}
ONE = {"/api/jobs/": [RUNNING], **ANSWERS}


class Dashboard:
    """The part of a Ray head's dashboard that a client uses.

    Args:
        answers: path -> JSON of the answer; other paths give 404.
        most: number of requests after which it ends.
    """

    def __init__(self, answers: dict[str, Any], most: int = 10**9) -> None:
        self.asked: list[str] = []
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path not in answers:
                    self.send_error(404)
                    return
                body = json.dumps(answers[self.path]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                dashboard.asked.append(self.path)
                if len(dashboard.asked) == most:
                    threading.Thread(target=dashboard.end).start()

            do_POST = do_GET

            def log_message(self, format: str, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def begin() -> Iterator[Callable[..., Dashboard]]:
    begun: list[Dashboard] = []

    def one(*arguments: Any) -> Dashboard:
        begun.append(Dashboard(*arguments))
        return begun[-1]

    yield one
    for dashboard in begun:
        dashboard.end()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:82x5", "http://127.0.0.1:99999", "http://[::1", "http://127.0.0.1:0", "8265"]
)
def test_an_invalid_address_is_rejected(address: str) -> None:
    with pytest.raises(UserError, match=r"not an address of a Jobs API; use one such as http://127\.0\.0\.1:8265"):
        ray_jobs.connect(address, print)


@pytest.mark.parametrize("host", ["a b", "a..b"])
def test_an_impossible_host_name_is_one_clear_error(host: str) -> None:
    with pytest.raises(UserError, match="no Ray cluster answers"):
        ray_jobs.connect(f"http://{host}:8265", print)


def test_a_port_without_http_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(UserError, match=r"no Ray cluster answers \(SSH-2.0-OpenSSH_9.2\)"):
            ray_jobs.connect(f"http://127.0.0.1:{server.getsockname()[1]}", print)


@pytest.mark.parametrize(
    "answers", [{"/api/jobs/": []}, {"/api/jobs/": [], "/api/version": []}, {"/api/jobs/": [], "/api/version": {}}]
)
def test_another_server_is_one_clear_error(answers: dict[str, Any], begin: Callable[..., Dashboard]) -> None:
    with pytest.raises(UserError, match="not a Ray dashboard"):
        ray_jobs.connect(begin(answers).address, print)


ASKED: dict[str, Callable[[Any, Path], object]] = {
    "list": lambda client, config: ray_jobs.list_submitted(client),
    "look": lambda client, config: ray_jobs.get_job(client, "run-1"),
    "logs": lambda client, config: ray_jobs.logs(client, "run-1"),
    "stop": lambda client, config: ray_jobs.stop(client, "run-1"),
    "submit": lambda client, config: ray_jobs.submit(client, config, []),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_cluster_that_no_longer_answers_is_one_clear_error(
    name: str, begin: Callable[..., Dashboard], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("name: run\ndata: {path: data}\n")
    dashboard = begin(ONE)
    client = ray_jobs.connect(dashboard.address, print)
    dashboard.end()
    with pytest.raises(UserError, match=f"{dashboard.address}: the cluster no longer answers .*Connection refused"):
        ASKED[name](client, tmp_path / "run.yaml")


def test_a_cluster_that_ends_while_a_stopped_job_is_awaited_is_one_clear_error(
    begin: Callable[..., Dashboard],
) -> None:
    dashboard = begin(ONE, 8)
    client = ray_jobs.connect(dashboard.address, print)
    with pytest.raises(UserError, match="the cluster no longer answers"):
        ray_jobs.stop(client, "run-1")
    assert dashboard.asked.count("/api/jobs/run-1/stop") == 1 and dashboard.asked.count("/api/jobs/run-1") > 1


def test_a_refused_request_is_one_clear_error(begin: Callable[..., Dashboard]) -> None:
    client = ray_jobs.connect(
        begin({name: answer for name, answer in ONE.items() if not name.endswith("stop")}).address, print
    )
    with pytest.raises(UserError, match=r"run-1: the cluster does not stop it \(.*404"):
        ray_jobs.stop(client, "run-1")
    with pytest.raises(UserError, match="nobody: the job does not exist on the cluster; jobs: run-1"):
        ray_jobs.get_job(client, "nobody")


def test_a_lost_connection_to_a_followed_job_is_retried(begin: Callable[..., Dashboard]) -> None:
    dashboard = begin(ONE)
    client = ray_jobs.connect(dashboard.address, print)
    dashboard.end()
    with pytest.raises(
        UserError, match=r"run-1: the connection to the cluster is lost .* mtgen jobs logs run-1 --follow"
    ):
        ray_jobs.follow(client, "run-1", print, attempts=1)
