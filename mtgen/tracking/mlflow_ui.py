"""MLflow's own pages over the runs, on loopback."""

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

SERVER_START_SECONDS = 120.0  # seconds that the server may take to answer first
EXPERIMENTS_PAGE = "/#/experiments?workflowType=machine_learning"  # the mode without pages for language models, which is not MLflow's default
SERVER_STOP_SECONDS = 10.0  # seconds that it may take to end
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def serve_ui(
    runs: str | Path,
    host: str = "127.0.0.1",
    port: int = 5000,
    tracking_uri: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve MLflow's pages over the runs until Ctrl-C; the next free port is taken where `port` is not, and the address is said.

    Args:
        runs: folder of the runs.
        tracking_uri: as `tracking.uri` in the configuration.
        say: where the lines for the user go.

    Raises:
        UserError: where there are no runs, or the server does not come up.
    """
    uri = store_uri(runs, tracking_uri)
    if urlsplit(uri).scheme in ("http", "https"):
        say(f"The runs are on a tracking server: {uri}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(
            f"{uri.removeprefix('sqlite:///')}: no run has been recorded there yet; train one first, or give its folder of runs"
        )
    port = free_port(host, port)
    address = f"http://{host}:{port}"
    if host not in ("127.0.0.1", "localhost", "::1"):
        say(f"{host}:{port} has no password: whoever can reach it can read, change and delete the runs")
    if threading.current_thread() is threading.main_thread():  # a shell's background jobs begin with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    server = _start(uri, host, port)
    try:
        _wait_for(server, address)
        say(f"MLflow shows the runs of {Path(runs).absolute()} at {address}{EXPERIMENTS_PAGE} (Ctrl-C ends it)")
        server.wait()
    except KeyboardInterrupt:
        say("")
    finally:
        _end(server)


def _start(uri: str, host: str, port: int) -> "subprocess.Popen[bytes]":
    """The server, in a session of its own so that Ctrl-C reaches it once, through us; it ends when this process does, however that ends."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    environment = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: those are for all to read, and an address may hold a password
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",  # its libraries' deprecations are not the user's
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
            with urllib.request.urlopen(f"{address}/health", timeout=5):  # noqa: S310 - the server that we started
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise UserError(f"MLflow's server did not come up at {address}; what it said is above")


def _end(server: "subprocess.Popen[bytes]") -> None:
    """MLflow hands a SIGTERM on to its workers; what does not heed it is killed with all that it started."""
    server.terminate()
    try:
        server.wait(SERVER_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
