"""MLflow's pages of the runs, served on loopback."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from mtgen.errors import UserError
from mtgen.storage.tracking_store import store_uri
from mtgen.utils.ports import free_port

SERVER_START_SECONDS = 120.0
"""Seconds until the server must answer."""
SERVER_STOP_SECONDS = 10.0
"""Seconds until the server must have stopped."""
EXPERIMENTS_PAGE = "/#/experiments?workflowType=machine_learning"
"""The page in MLflow's mode without pages for language models, which is not its default."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def serve_ui(
    runs: str | Path,
    host: str = "127.0.0.1",
    port: int = 5000,
    tracking_uri: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve MLflow's pages of the runs until Ctrl-C, on `port` or the next free one, and print their address.

    Args:
        runs: folder of all runs.
        host: address to bind.
        port: first port to try.
        tracking_uri: `tracking.uri` of the configuration.
        say: prints a line.

    Raises:
        UserError: there are no runs, or the server does not start.
    """
    uri = store_uri(runs, tracking_uri)
    if urlsplit(uri).scheme in ("http", "https"):
        say(f"the runs are on a tracking server: {uri}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(
            f"{uri.removeprefix('sqlite:///')}: contains no runs yet; train one first, or use the folder that has runs"
        )
    port = free_port(host, port)
    address = f"http://{host}:{port}"
    if host not in ("127.0.0.1", "localhost", "::1"):
        say(f"warning: {host}:{port} has no password: anyone who reaches it can read, change and delete runs")
    if threading.current_thread() is threading.main_thread():  # shells start background jobs with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    server = _start(uri, host, port)
    try:
        _wait_for(server, address)
        say(f"MLflow shows the runs in {Path(runs).absolute()} at {address}{EXPERIMENTS_PAGE} (Ctrl-C stops it)")
        server.wait()
    except KeyboardInterrupt:
        say("")
    finally:
        _end(server)


def _start(uri: str, host: str, port: int) -> "subprocess.Popen[bytes]":
    """Start the server, which ends with this process; in its own session, so that Ctrl-C does not reach it directly."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    environment = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # all users can read arguments, and an address may hold a password
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",  # deprecations in its libraries
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "ui",
            "--host",
            host,
            "--port",
            str(port),
            "--workers",
            "1",
            "--uvicorn-opts",
            "--log-level warning",
        ],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def _wait_for(server: "subprocess.Popen[bytes]", address: str) -> None:
    deadline = time.monotonic() + SERVER_START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):  # noqa: S310 - the server started above
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise UserError(f"MLflow's server did not start at {address}; see its output above")


def _end(server: "subprocess.Popen[bytes]") -> None:
    """Stop the server with SIGTERM, which it passes to its workers; kill all its processes if it does not stop."""
    server.terminate()
    try:
        server.wait(SERVER_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
