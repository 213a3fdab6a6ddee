"""Runs as jobs of a real Ray head with a token: submitted, followed, stopped, resumed; other clients are rejected."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from helpers.commands import IMAGES, ROOT, Command, checkpoints, furnish, look, trained
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from mtgen.launchers.ray_node import free_port, own_address
from mtgen.launchers.ray_session import session_folder

pytestmark = pytest.mark.e2e

TOKEN = "a-token-of-these-tests-" + "x" * 32
NOWHERE = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "", "HOME": "/nonexistent"}


@dataclass
class Head:
    """A running head, the address of its Jobs API, and a function that starts a command with its token."""

    command: Command
    address: str
    start: Callable[..., Command]


def end(command: Command) -> None:
    if command.process.poll() is None:
        family = command.family()
        command.process.terminate()
        command.wait()
        assert psutil.wait_procs(family, timeout=60)[1] == [], "processes of the cluster live on"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("jobs"))


def answer(address: str, token: str | None = None) -> int:
    """HTTP status of the Jobs API's answer to a submitted command."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(f"{address}/api/jobs/", json.dumps({"entrypoint": "true"}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def neighbor() -> Iterator[None]:
    """Occupy the default port of the agent that starts jobs, as another cluster on the system would."""
    try:
        listener = socket.create_server(("127.0.0.1", DEFAULT_DASHBOARD_AGENT_LISTEN_PORT))
    except OSError:  # by a cluster of another test
        yield
        return
    with listener:
        yield


@pytest.fixture(scope="module")
def head(place: Path, neighbor: None) -> Iterator[Head]:
    port = free_port()
    words = ("cluster", "head", "--port", str(free_port()), "--dashboard-port", str(port))
    address = f"http://127.0.0.1:{port}"
    with session_folder() as folder:  # Ray gives a job the address of the newest cluster whose files are there
        command = Command(place, *words, RAY_AUTH_TOKEN=TOKEN, **folder)
        try:
            command.until(lambda: "Ray runtime started" in command.said and answer(address) == 401)
            yield Head(
                command,
                address,
                lambda *words, **variables: Command(
                    place, *words, "--address", address, **{"RAY_AUTH_TOKEN": TOKEN} | variables
                ),
            )
        finally:
            end(command)


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses on which any of the processes listens."""
    family = {process.pid for process in processes}
    return {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in family}


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_the_cluster_of_a_run_listens_on_loopback_only(place: Path) -> None:
    command = Command(place, "train", "run.yaml", "name=quiet", "workers=2", "train.images=100000")
    try:
        command.until(lambda: checkpoints(place, "quiet"))
        assert len(command.workers()) == 2
        assert listening(command.family()) and listening(command.family()) <= LOOPBACK
    finally:
        for process in [*command.family(), command.process]:
            process.kill()
        command.wait()


def test_a_head_listens_on_loopback_only(head: Head) -> None:
    assert listening(head.command.family()) and listening(head.command.family()) <= LOOPBACK


def test_a_command_cannot_be_submitted_without_the_token(head: Head) -> None:
    assert answer(head.address) == 401
    assert answer(head.address, "another") == 403


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (NOWHERE, "requires its authentication token"),
        ({"RAY_AUTH_TOKEN": "another"}, "rejects the token from RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nonexistent/token"}, "does not exist"),
    ],
    ids=["without a token", "with a wrong one", "with a file that is not there"],
)
def test_submit_is_rejected_with_the_reason(head: Head, place: Path, variables: dict[str, str], said: str) -> None:
    command = head.start("submit", "run.yaml", "name=refused", **variables).wait()
    assert command.status == 1
    assert len(command.errors) == 1 and said in command.errors[0] and "Traceback" not in command.said, command.said
    assert not (place / "runs" / "refused").exists()


def test_a_driver_without_the_token_cannot_join(head: Head, place: Path) -> None:
    port = next(
        word
        for word, before in zip(head.command.process.args[1:], head.command.process.args, strict=False)
        if before == "--port"
    )
    command = Command(
        place,
        "train",
        "run.yaml",
        "name=joins",
        "workers=1",
        f"address=127.0.0.1:{port}",
        **{"RAY_AUTH_TOKEN": "another"},
    ).wait()
    assert command.status == 5 and len(command.errors) == 1 and "requires its token" in command.errors[0], command.said


def test_an_invalid_configuration_is_rejected_before_it_is_sent(head: Head) -> None:
    command = head.start("submit", "run.yaml", "batch_sise=8").wait()
    assert command.status == 2 and "batch_size" in command.errors[0]


def test_a_submitted_run_shows_its_progress_and_equals_a_local_run(head: Head, place: Path) -> None:
    command = head.start("submit", "run.yaml", "name=away", "workers=2", "--json", "job.json").wait()
    assert command.status == 0, command.said
    assert f"{IMAGES:,}/{IMAGES:,} images" in command.said and "finished" in command.said
    assert look(place, "away").facts["digest"] == trained(place, "home", 2).facts["digest"]
    listed = head.start("jobs", "list", "--json", "jobs.json").wait()
    assert listed.status == 0, listed.said
    job = json.loads((place / "job.json").read_text(encoding="utf-8"))["job"]
    assert {"SUCCEEDED"} == {
        j["status"] for j in json.loads((place / "jobs.json").read_text(encoding="utf-8")) if j["job"] == job
    }


def test_a_stopped_job_saves_a_checkpoint_and_the_same_command_resumes(head: Head, place: Path) -> None:
    words = ("submit", "run.yaml", "name=stopped", "workers=2", "checkpoint.every=100000", "train.images=4000")
    watching = head.start(*words, "--json", "stopped.json")
    watching.until(lambda: "left" in watching.said)  # it trains
    job = watching.said.split()[1].rstrip(":")
    stop = head.start("jobs", "stop", job).wait()
    assert stop.status == 0 and "stopped" in stop.said, stop.said
    assert watching.wait().status == 0, watching.said
    (only,) = checkpoints(place, "stopped")
    assert 0 < int(only.name) < 4000
    again = head.start(*words).wait()
    assert again.status == 0, again.said
    assert f"resuming stopped from {int(only.name):,} images" in again.said
    run = look(place, "stopped")
    assert run.facts["position"] == 4000 and run.starts == [0, int(only.name)]
    logs = head.start("jobs", "logs", job).wait()
    assert "stopping after a checkpoint" in logs.said


def test_a_job_that_fails_gives_its_exit_status(head: Head) -> None:
    command = head.start("submit", "run.yaml", "name=fails", "data.path=/nonexistent").wait()
    assert command.status == 3, command.said
    assert "Traceback" not in command.said and "/nonexistent" in command.said


def test_an_unknown_job_is_an_error_that_names_the_existing_ones(head: Head) -> None:
    command = head.start("jobs", "stop", "nobody").wait()
    assert command.status == 1 and len(command.errors) == 1 and "nobody" in command.errors[0], command.said


def test_rays_own_command_trains_too(head: Head, place: Path) -> None:
    words = [
        "job",
        "submit",
        "--address",
        head.address,
        "--",
        "mtgen",
        "train",
        str(place / "run.yaml"),
        "name=plain",
        "workers=1",
    ]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    done = subprocess.run(
        [*ray, *words], env=environment, cwd=place, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert look(place, "plain").facts["position"] == IMAGES


class _Open(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_remote_cluster_without_authentication_is_rejected(place: Path) -> None:
    if own_address() == "127.0.0.1":
        pytest.skip("this machine has no address but loopback")
    with socket.socket() as probe:
        probe.bind((own_address(), 0))
        port = probe.getsockname()[1]
    server = http.server.ThreadingHTTPServer((own_address(), port), _Open)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        command = Command(
            place, "submit", "run.yaml", "--address", f"http://{own_address()}:{port}", RAY_AUTH_TOKEN=TOKEN
        ).wait()
    finally:
        server.shutdown()
        server.server_close()
    assert command.status == 1 and "requires no token" in command.errors[0]


def test_no_cluster_starts_with_a_token_that_others_can_read(place: Path) -> None:
    token = place / "token"
    token.write_text("x" * 32, encoding="utf-8")
    token.chmod(0o644)
    command = Command(place, "cluster", "head", RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(token)).wait()
    assert command.status == 1 and "chmod 600" in command.errors[0]


def test_a_new_token_is_readable_by_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtgen.launchers.ray_node import token_file

    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "new" / "token"))
    path = token_file()
    assert path is not None and path.stat().st_mode & 0o777 == 0o600 and len(path.read_text(encoding="utf-8")) == 64
    assert token_file() == path
