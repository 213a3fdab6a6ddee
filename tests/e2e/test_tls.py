"""A cluster whose connections Ray encrypts: a run trains on it, and nobody without a certificate of its authority is let in."""

import datetime
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from commands import IMAGES, Command, furnish, look
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mtgen.orchestrate.node import free_port, own_address

pytestmark = pytest.mark.e2e

TOKEN = "a-token-of-these-tests-" + "x" * 32


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificates(folder: Path) -> dict[str, str]:
    """An authority of its own and a node's certificate by it, as variables of Ray's: what launch/README.md says to do."""
    folder.mkdir()
    keys = {who: ec.generate_private_key(ec.SECP256R1()) for who in ("ca", "node")}
    now = datetime.datetime.now(datetime.UTC)
    for who, key in keys.items():
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(who))
            .issuer_name(name("ca"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=who == "ca", path_length=None), critical=True)
        )
        if who == "node":
            addresses = {ipaddress.ip_address(address) for address in ("127.0.0.1", own_address())}
            names = [x509.DNSName("localhost"), *(x509.IPAddress(address) for address in sorted(addresses))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(keys["ca"], hashes.SHA256())
        (folder / f"{who}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = keys["node"].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "node.key").write_bytes(private)
    (folder / "node.key").chmod(0o600)
    files = {"RAY_TLS_SERVER_CERT": "node.crt", "RAY_TLS_SERVER_KEY": "node.key", "RAY_TLS_CA_CERT": "ca.crt"}
    return {"RAY_USE_TLS": "1", **{variable: str(folder / file) for variable, file in files.items()}}


@dataclass
class Cluster:
    """A head on loopback that speaks TLS and demands a token.

    Attributes:
        place: the folder of its users' runs.
        tls: variables of a process that has a certificate.
        port: where drivers and nodes join.
    """

    place: Path
    tls: dict[str, str]
    port: int

    def train(self, run: str, **variables: str) -> Command:
        return Command(self.place, "train", "run.yaml", f"name={run}", "workers=1", f"address=127.0.0.1:{self.port}", **variables).wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    place = furnish(tmp_path_factory.mktemp("tls"))
    tls, port = certificates(place / "certificates"), free_port()
    words = ("cluster", "head", "--port", str(port), "--dashboard-port", str(free_port()), "--cpus", "1")
    command = Command(place, *words, RAY_AUTH_TOKEN=TOKEN, RAY_TMPDIR="/tmp", **tls)  # noqa: S108 - sockets' paths are short
    try:
        command.until(lambda: "Ray runtime started" in command.said)
        yield Cluster(place, tls, port)
    finally:
        family = command.family()
        command.process.terminate()
        command.wait()
        psutil.wait_procs(family, timeout=60)


def test_a_run_trains_on_a_cluster_that_encrypts(cluster: Cluster) -> None:
    command = cluster.train("encrypted", RAY_AUTH_TOKEN=TOKEN, **cluster.tls)
    assert command.status == 0, command.said
    assert look(cluster.place, "encrypted").facts["position"] == IMAGES


def test_the_head_asks_whoever_connects_for_a_certificate(cluster: Cluster) -> None:
    context = ssl.create_default_context(cafile=cluster.tls["RAY_TLS_CA_CERT"])
    with socket.create_connection(("127.0.0.1", cluster.port)) as raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as line:
        with pytest.raises(ssl.SSLError, match="(?i)certificate required"):
            line.recv(1)  # in TLS 1.3 the refusal follows the handshake


def refused(command: Command) -> None:
    assert command.status == 5, command.said
    assert len(command.errors) == 1 and "cannot reach the Ray cluster" in command.errors[0] and "TLS" in command.errors[0], command.said
    assert "Traceback" not in command.said


def test_a_driver_with_the_token_but_without_a_certificate_is_refused(cluster: Cluster) -> None:
    refused(cluster.train("plain", RAY_AUTH_TOKEN=TOKEN))


def test_a_driver_with_a_certificate_of_another_authority_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    refused(cluster.train("strange", RAY_AUTH_TOKEN=TOKEN, **certificates(tmp_path / "others")))


def test_a_certificate_does_not_replace_the_token(cluster: Cluster) -> None:
    command = cluster.train("tokenless", **cluster.tls | {"RAY_AUTH_TOKEN": "another"})
    assert command.status == 5 and len(command.errors) == 1 and "demands its token" in command.errors[0], command.said
