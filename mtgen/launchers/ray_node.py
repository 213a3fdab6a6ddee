"""One node of a Ray cluster that mtgen starts: on loopback, or with others; in both cases whoever talks to it has to show the token."""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from mtgen.errors import UserError

OBJECT_STORE_BYTES = 500_000_000
"""Bytes of memory for Ray's objects: mtgen hands nothing large to Ray, whose default is a third of the machine."""


def own_address() -> str:
    """This machine's address in its network, as Ray finds it out: nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 1))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])


def token_file() -> Path | None:
    """The file of the token that a cluster's nodes and users share; made, for its owner alone, where there is none. `None`: it is in
    RAY_AUTH_TOKEN.

    Raises:
        UserError: others can read it.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            raise UserError(
                f"{path}: others can read this token, and with it run commands on the cluster; chmod 600 {path}"
            ) from None
    except OSError as error:
        raise UserError(
            f"{path}: the token cannot be written ({error.strerror}); name another file in RAY_AUTH_TOKEN_PATH"
        ) from error
    return path


def command(
    head: str | None, port: int, span: bool, cpus: int | None, gpus: int | None, dashboard: int | None
) -> list[str]:
    """The command of a node that stays in the foreground.

    Args:
        head: address and port of the head to join; `None`: this is the head.
        port: of the head, for the other nodes.
        span: other nodes may join; else it listens on loopback.
        dashboard: port of the dashboard with its Jobs API, always on loopback; `None`: none.
    """
    words = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        "--disable-usage-stats",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
    ]
    words += [
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]  # any; Ray's own range may hold the head's port, and another node's here
    words.append(
        "--dashboard-agent-listen-port=0"
    )  # any; another cluster here has Ray's own, and no job starts without one
    if head:
        words.append(f"--address={head}")
    else:
        words += [
            "--head",
            f"--port={port}",
            f"--include-dashboard={str(dashboard is not None).lower()}",
            "--dashboard-host=127.0.0.1",
        ]
        words += [f"--dashboard-port={dashboard}"] if dashboard is not None else []
        words += [f"--node-ip-address={own_address()}"] if span else []
        words.append(
            f"--ray-client-server-port={free_port()}"
        )  # nobody uses it, but a head whose one is taken (10001) ends
    words += [f"--num-cpus={cpus}"] if cpus is not None else []
    return words + ([f"--num-gpus={gpus}"] if gpus is not None else [])


STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
"""What asks a run for a checkpoint and its end. Ray's processes are deaf to it: they end when training has, not under it."""


def _block_stop_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """What is started within it is deaf to `STOP_SIGNALS`, also where a shell, `timeout` or systemd asks all processes of a run at once.

    And this process's handler of SIGTERM stays: Ray puts its own in its place, which ends the process with a crash report.
    """
    before, libc, kept = (
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS),
        ctypes.CDLL(None),
        ctypes.create_string_buffer(1024),
    )
    libc.sigaction(signal.SIGTERM, None, kept)  # Python would ask for the main thread
    try:
        yield
    finally:
        libc.sigaction(signal.SIGTERM, kept, None)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_node(words: list[str], span: bool, asked: Callable[[], bool] = lambda: True) -> int:
    """Run a node until its processes end, or a signal asks for the end.

    Args:
        words: as `command` gives them.
        asked: called at SIGTERM, SIGINT and SIGUSR1; whether the node is to end.

    Returns:
        The exit status of Ray's command; 0 where it was asked to end.
    """
    alone = {} if span else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the only way to keep Ray on loopback
    environment = {**os.environ, **alone, "RAY_AUTH_MODE": "token"}
    environment["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), environment.get("PATH", "")]
    )  # a job's `python` is ours
    requests: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: requests.append(number))
    ray = subprocess.Popen(words, env=environment, preexec_fn=_block_stop_signals, process_group=0)
    try:
        while ray.poll() is None:
            if requests:
                requests.clear()
                if asked():
                    return 0
            time.sleep(0.2)
        return ray.returncode
    finally:
        _end(ray)


def _end(ray: "subprocess.Popen[bytes]") -> None:
    """Kill what this node started, and nothing else of Ray's on the machine."""
    try:
        family = [*psutil.Process(ray.pid).children(recursive=True), psutil.Process(ray.pid)]
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)
    ray.wait()


def wait_for(address: str, port: int, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Wait until somebody listens there.

    Args:
        meanwhile: called again and again; what it raises ends the waiting.

    Raises:
        UserError: nobody does, after so many seconds.
    """
    deadline = time.monotonic() + seconds
    problem: Any = None
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((address, port), timeout=5):
                return
        except OSError as error:
            problem = error
            meanwhile()
            time.sleep(0.5)
    raise UserError(
        f"{address}:{port}: nobody answers there ({problem}); does the head of the Ray cluster run, and can this machine reach it?"
    )
