"""A cluster with TLS: a run trains on it, and clients without a certificate of its authority are rejected."""

import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from helpers.commands import IMAGES, ROOT, Command, furnish, look

from mtgen.launchers.ray_node import free_port, own_address
from mtgen.launchers.ray_session import session_folder

pytestmark = pytest.mark.e2e

TOKEN = "a-token-of-these-tests-" + "x" * 32


def certificates(folder: Path) -> dict[str, str]:
    """Ray's variables for an authority and a node's certificate, created with the commands in launch/README.md."""
    folder.mkdir()
    readme = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")
    commands = next(block for block in readme.split("```bash\n") if block.startswith("openssl")).partition("```")[0]
    subprocess.run(
        ["bash", "-ec", commands],
        cwd=folder,
        env={**os.environ, "NODE_ADDRESS": own_address()},
        check=True,
        capture_output=True,
    )
    files = {"RAY_TLS_SERVER_CERT": "tls.crt", "RAY_TLS_SERVER_KEY": "tls.key", "RAY_TLS_CA_CERT": "ca.crt"}
    return {"RAY_USE_TLS": "1", **{variable: str(folder / file) for variable, file in files.items()}}


@dataclass
class Cluster:
    """A head on loopback that uses TLS and requires a token.

    Attributes:
        place: folder of its users' runs.
        tls: environment variables of a process with a certificate.
        port: port that drivers and nodes join.
    """

    place: Path
    tls: dict[str, str]
    port: int

    def train(self, run: str, **variables: str) -> Command:
        return Command(
            self.place, "train", "run.yaml", f"name={run}", "workers=1", f"address=127.0.0.1:{self.port}", **variables
        ).wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    place = furnish(tmp_path_factory.mktemp("tls"))
    tls, port = certificates(place / "certificates"), free_port()
    words = ("cluster", "head", "--port", str(port), "--dashboard-port", str(free_port()), "--cpus", "1")
    with session_folder() as folder:
        command = Command(place, *words, RAY_AUTH_TOKEN=TOKEN, **folder, **tls)
        try:
            command.until(lambda: "Ray runtime started" in command.said)
            yield Cluster(place, tls, port)
        finally:
            family = command.family()
            command.process.terminate()
            command.wait()
            psutil.wait_procs(family, timeout=60)


def test_a_run_trains_on_a_cluster_with_tls(cluster: Cluster) -> None:
    command = cluster.train("encrypted", RAY_AUTH_TOKEN=TOKEN, **cluster.tls)
    assert command.status == 0, command.said
    assert look(cluster.place, "encrypted").facts["position"] == IMAGES


@pytest.mark.parametrize(("certificate", "answers"), [(True, True), (False, False)], ids=["with one", "without one"])
def test_the_head_answers_no_client_without_a_certificate(cluster: Cluster, certificate: bool, answers: bool) -> None:
    context = ssl.create_default_context(cafile=cluster.tls["RAY_TLS_CA_CERT"])
    context.set_alpn_protocols(["h2"])
    if certificate:
        context.load_cert_chain(cluster.tls["RAY_TLS_SERVER_CERT"], cluster.tls["RAY_TLS_SERVER_KEY"])
    with (
        socket.create_connection(("127.0.0.1", cluster.port), timeout=60) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as line,
    ):
        try:
            said = line.recv(1)  # HTTP/2 begins with the server's settings
        except (ssl.SSLError, ConnectionResetError):
            said = b""
    assert bool(said) == answers


def refused(command: Command) -> None:
    assert command.status == 5, command.said
    assert (
        len(command.errors) == 1 and "cannot reach the Ray cluster" in command.errors[0] and "TLS" in command.errors[0]
    ), command.said
    assert "Traceback" not in command.said


def test_a_driver_with_the_token_but_without_a_certificate_is_rejected(cluster: Cluster) -> None:
    refused(cluster.train("plain", RAY_AUTH_TOKEN=TOKEN))


def test_a_driver_with_a_certificate_of_another_authority_is_rejected(cluster: Cluster, tmp_path: Path) -> None:
    refused(cluster.train("strange", RAY_AUTH_TOKEN=TOKEN, **certificates(tmp_path / "others")))


def test_a_certificate_does_not_replace_the_token(cluster: Cluster) -> None:
    command = cluster.train("tokenless", **cluster.tls | {"RAY_AUTH_TOKEN": "another"})
    assert command.status == 5 and len(command.errors) == 1 and "requires its token" in command.errors[0], command.said
