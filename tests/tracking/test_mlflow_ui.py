"""MLflow's pages of the runs: they are served on loopback, and no process is left."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mtgen.config import Config
from mtgen.errors import UserError
from mtgen.schema import DatasetCard
from mtgen.tracking.mlflow_ui import serve_ui
from mtgen.tracking.tracker import Tracker
from mtgen.utils.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run."""
    runs = tmp_path_factory.mktemp("runs")
    config = Config.model_validate(
        {
            "name": "run",
            "runs": str(runs),
            "data": {"path": "digits"},
            "tracking": {"uri": f"sqlite:///{runs}/mlflow.db"},
        }
    )
    assert Tracker(config, config.folder, DatasetCard(name="digits", splits={}), "5eed").finish(0, timeout=100.0) == 0
    return runs


@contextmanager
def pages(runs: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str, list[psutil.Process]]]:
    """A process that serves the pages; yields it, its address and its child processes."""
    program = f"""
from mtgen.tracking.mlflow_ui import serve_ui
serve_ui({str(runs)!r}, port={port}, say=lambda text: print(text, flush=True))
"""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment
    )
    try:
        assert process.stdout
        address = re.search(r"http://127.0.0.1:\d+", process.stdout.readline())
        assert address
        yield process, address[0], psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()


def post(address: str, body: object) -> dict[str, list[dict[str, dict[str, str]]]]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


def all_end(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=30)[1]


def test_the_pages_show_the_runs_of_the_folder_and_end_with_ctrl_c(runs: Path) -> None:
    with pages(runs, free_port("127.0.0.1", 5200)) as (process, address, started):
        found = post(f"{address}/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"]})
        assert [run["info"]["run_name"] for run in found["runs"]] == ["run"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert started and all_end(started)


def test_no_process_is_left_when_the_command_is_killed(runs: Path) -> None:
    with pages(runs, free_port("127.0.0.1", 5300)) as (process, _, started):
        process.kill()
        assert started and all_end(started)


def test_a_port_in_use_is_skipped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) > port


def test_port_0_is_any_free_port() -> None:
    assert free_port("127.0.0.1", 0) > 0


def test_a_host_of_another_system_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="192.0.2.1: not an address of this system"):
        free_port("192.0.2.1", 5000)


def test_a_folder_without_runs_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="mlflow.db: contains no runs yet"):
        serve_ui(tmp_path)


def test_a_tracking_server_is_named_and_not_served_again(tmp_path: Path) -> None:
    said: list[str] = []
    serve_ui(tmp_path, tracking_uri="http://server:5000", say=said.append)
    assert said == ["the runs are on a tracking server: http://server:5000"]
