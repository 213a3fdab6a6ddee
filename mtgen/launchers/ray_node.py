"""A node of a Ray cluster that mtgen starts, on loopback or with other nodes; in both cases it requires the token."""

import ctypes
import math
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
"""Memory for Ray's objects: mtgen's are small, while Ray's default is a third of the system's memory."""


def own_address() -> str:
    """This system's address in its network, determined as Ray does, without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 1))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def free_port() -> int:
    """A port that is free at present."""
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])


def token_file() -> Path | None:
    """The file with the token of a cluster; created, readable by its owner only, if it does not exist.

    Returns:
        `None` if RAY_AUTH_TOKEN holds the token.

    Raises:
        UserError: other users can read the file, or it cannot be written.
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
                f"{path}: other users can read this token, and with it run commands on the cluster; chmod 600 {path}"
            ) from None
    except OSError as error:
        raise UserError(
            f"{path}: the token cannot be written ({error.strerror}); set RAY_AUTH_TOKEN_PATH to another file"
        ) from error
    return path


def command(
    head: str | None, port: int, span: bool, cpus: int | None, gpus: int | None, dashboard: int | None
) -> list[str]:
    """The command that runs a node in the foreground.

    Args:
        head: HOST:PORT of the head to join; `None`: this node is the head.
        port: port of the head, for the other nodes.
        span: whether other nodes can join; otherwise the head listens on loopback.
        cpus: CPUs of this node; `None`: all.
        gpus: GPUs of this node; `None`: all.
        dashboard: port of the dashboard and its Jobs API, always on loopback; `None`: no dashboard.
    """
    words = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",  # the `ray` command
        "start",
        "--block",
        "--disable-usage-stats",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
    ]
    # 0: any free port. Ray's default range may contain ports of the head or of another node on this system.
    words += ["--min-worker-port=0", "--max-worker-port=0"]
    # 0 again: another cluster on this system may use Ray's default port, and no job starts without an agent.
    words.append("--dashboard-agent-listen-port=0")
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
        # Not used, but a head whose default port (10001) is in use does not start.
        words.append(f"--ray-client-server-port={free_port()}")
    words += [f"--num-cpus={cpus}"] if cpus is not None else []
    return words + ([f"--num-gpus={gpus}"] if gpus is not None else [])


STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
"""Signals that stop a run after a checkpoint. Ray's processes ignore them: they must outlive the training."""


def _block_stop_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block `STOP_SIGNALS` in the processes that are started in this context.

    A shell, `timeout` or systemd may signal all processes of a run at once. The context also restores this process's
    handler of SIGTERM, which Ray replaces with one that ends the process with a crash report.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    libc = ctypes.CDLL(None)
    kept = ctypes.create_string_buffer(1024)
    libc.sigaction(signal.SIGTERM, None, kept)  # signal.signal works in the main thread only
    try:
        yield
    finally:
        libc.sigaction(signal.SIGTERM, kept, None)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_node(
    words: list[str],
    span: bool,
    asked: Callable[[], bool] = lambda: True,
    leave: Callable[[int, dict[str, str]], float] | None = None,
) -> int:
    """Run a node until its processes end, or a signal stops it.

    Args:
        words: the command, from `command`.
        span: whether other nodes can join; otherwise Ray stays on loopback.
        asked: called at SIGTERM, SIGINT and SIGUSR1; whether the node should end.
        leave: called at the first SIGTERM with the process of `ray start` and its environment; gives notice to the
            cluster, and returns after how many seconds the node ends. A second signal ends it at once.

    Returns:
        The exit status of Ray's command; 0 if a signal ended it.
    """
    loopback = {} if span else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the only way to keep Ray on loopback
    environment = {**os.environ, **loopback, "RAY_AUTH_MODE": "token"}
    # `python` in a job's command is then this one.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    requests: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: requests.append(number))
    ray = subprocess.Popen(words, env=environment, preexec_fn=_block_stop_signals, process_group=0)
    deadline = math.inf
    try:
        while ray.poll() is None and time.monotonic() < deadline:
            if requests:
                preempted = requests.pop(0) == signal.SIGTERM and leave is not None and deadline == math.inf
                if preempted and leave is not None:
                    deadline = time.monotonic() + leave(ray.pid, environment)
                elif asked():
                    return 0
            time.sleep(0.2)
        if deadline < math.inf:
            return 0
        return ray.returncode
    finally:
        _end(ray)


def _end(ray: "subprocess.Popen[bytes]") -> None:
    """Kill the processes of this node, and no other Ray processes on the system."""
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
    """Wait until something listens on a port.

    Args:
        meanwhile: called after each attempt; an exception ends the wait.

    Raises:
        UserError: nothing listens after `seconds`.
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
        f"{address}:{port}: no answer ({problem}); check that the head of the Ray cluster runs and can be reached"
    )
