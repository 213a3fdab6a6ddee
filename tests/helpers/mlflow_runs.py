"""Small runs in real MLflow stores, for the tests."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from mtgen.config import Config
from mtgen.schema import DatasetCard
from mtgen.storage.tracking_store import store_uri
from mtgen.tracking.tracker import Tracker

REPOSITORY = Path(__file__).resolve().parents[2]
CARD = DatasetCard(name="digits", splits={})
FINGERPRINT = "5eed" * 16


def configuration(
    runs: Path, name: str = "run", uri: str | None = None, group: str | None = None, **more: Any
) -> Config:
    tracking = {"uri": uri, "group": group}
    return Config.model_validate(
        {"name": name, "runs": str(runs), "data": {"path": "digits"}, "tracking": tracking, **more}
    )


def tracker(config: Config, images: int = 0) -> Tracker:
    return Tracker(config, config.folder, CARD, FINGERPRINT, images)


def losses(tracking: Tracker, *images: int) -> None:
    for number in images:
        tracking.row(number, {"loss/d": float(number)})


def the_run(runs: Path, uri: str | None = None) -> tuple[MlflowClient, Run]:
    """The only run in the store."""
    client = MlflowClient(uri or store_uri(runs))
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(found) == 1
    return client, found[0]


def steps(runs: Path, uri: str | None = None, key: str = "loss/d") -> list[int]:
    """All steps of a metric, duplicates included, in the order in which the store received them."""
    client, run = the_run(runs, uri)
    points = client.get_metric_history(run.info.run_id, key)
    if key == "loss/d":
        assert all(point.value == point.step for point in points)
    return [point.step for point in points]


def sender_of(folder: Path) -> psutil.Process | None:
    for child in psutil.Process().children():
        if child.status() != psutil.STATUS_ZOMBIE and str(folder) in child.cmdline():
            return child
    return None


def until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], health: str, cwd: Path, **variables: str) -> Iterator[None]:
    """A server in its own process group, once its address `health` answers; killed at the end, as by a power cut."""
    quiet = subprocess.DEVNULL
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **variables}
    process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True, cwd=cwd)

    def answers() -> bool:
        assert process.poll() is None, f"{command[:4]} ended with {process.returncode}"
        try:
            with urllib.request.urlopen(health, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    try:
        until(answers)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def server(
    folder: Path, port: int, store: str | None = None, artifacts: str | None = None, **variables: str
) -> Iterator[str]:
    """MLflow's own tracking server, over SQLite and the folder's files or what else is given."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store or f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", artifacts or f"{folder}/server-artifacts"]
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/health", folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", **variables):
        yield address
