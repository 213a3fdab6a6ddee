"""What a training run leaves behind: its journal, from which a process of its own feeds MLflow.

Training writes the journal and nothing else, so MLflow can neither slow nor stop it: see `sender`.
"""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from mtgen.errors import UserError
from mtgen.storage.tracking_store import store_uri
from mtgen.tracking.journal import JOURNAL_FILE, Journal, read_journal
from mtgen.tracking.mlflow_sender import pending_rows
from mtgen.utils.system import code_version, system_metrics
from mtgen.version import PACKAGE

if TYPE_CHECKING:
    from mtgen.config import Config
    from mtgen.schema import DatasetCard

SENDER_RESTART_SECONDS = 60.0  # seconds between two starts of a sender that somebody killed


class Tracker:
    """What one training run leaves behind: its journal and, in a process of its own, its way to MLflow. For rank 0.

    No call waits for MLflow. A run that resumes goes on in its MLflow run.

    Args:
        config: the resolved configuration; its keys become MLflow's params, its text the artifact `config.yaml`.
        folder: the run's folder.
        card, fingerprint: which data set it learns from.
        images: position from which it goes on; the journal's rows beyond it are cut.
        workers: how many train.
    """

    def __init__(
        self,
        config: "Config",
        folder: str | Path,
        card: "DatasetCard",
        fingerprint: str,
        images: int = 0,
        workers: int = 1,
    ) -> None:
        self.folder = Path(folder).absolute()
        self._uri = store_uri(self.folder.parent, config.tracking.uri)
        self._experiment = config.tracking.experiment
        self.journal = Journal(self.folder)
        evaluations = self.journal.rewind(images)
        start = {
            "id": uuid.uuid4().hex,
            "name": config.name,
            "group": config.tracking.group,
            "config": config.to_yaml(),
            "card": card.model_dump(mode="json"),
            "workers": workers,
            "tags": {
                **code_version(),
                "mtgen.folder": str(self.folder),
                "dataset.name": card.name,
                "dataset.fingerprint": fingerprint,
                "mlflow.user": psutil.Process().username(),
                "mlflow.source.name": "mtgen train",
                "mlflow.source.type": "LOCAL",
            },
        }
        self.journal.append(images, start=start)
        for row in evaluations:
            self.journal.append(row.images, time=row.time, values=row.values)
        system_metrics(self.folder)  # the CPU's share is counted since the last call, so the first says nothing
        self._system_at = -1
        self._sender = _start_sender(self.folder, self._uri, self._experiment)
        self._started = time.monotonic()

    def row(self, images: int, values: Mapping[str, float]) -> dict[str, float]:
        """Record named numbers at a position; returns them as the journal has them.

        The first row of a position also says how busy the machine is (`system/...`).
        """
        if images > self._system_at:
            values = {**values, **system_metrics(self.folder)}
            self._system_at = images
        written = self.journal.row(images, values)
        if (
            self._sender.poll() is not None and time.monotonic() - self._started > SENDER_RESTART_SECONDS
        ):  # somebody killed it
            self._sender, self._started = _start_sender(self.folder, self._uri, self._experiment), time.monotonic()
        return written

    def tags(self, images: int, texts: Mapping[str, str]) -> None:
        """Say something of the run as a whole, by name; said again, it replaces what was said before."""
        self.journal.tags(images, texts)

    def artifact(self, images: int, path: str | Path, to: str = "") -> None:
        """Keep the file `path` with the run, in the folder `to` of its artifacts."""
        self.journal.artifact(images, path, to)

    def phase(self, images: int, text: str) -> None:
        """Say what the run is busy with while no numbers come, for whoever watches it; "" when it goes on."""
        self.journal.phase(images, text)

    def finish(self, images: int, status: str = "FINISHED", timeout: float = 30.0) -> int:
        """End the run in MLflow as FINISHED, FAILED or KILLED; wait `timeout` seconds at most for what is not sent yet.

        Returns:
            How many rows are still kept; a resume or `send_pending` sends them.
        """
        self.journal.append(images, status=status)
        self.journal.close()
        if self._sender.poll() is not None:
            self._sender = _start_sender(self.folder, self._uri, self._experiment)
        return _end_sender(self._sender, self.folder, timeout)


def send_pending(config: "Config", folder: str | Path, timeout: float = 30.0) -> int:
    """Send what the journal of a run holds that MLflow has not got yet; returns how many rows are still kept after `timeout` seconds.

    Raises:
        UserError: where `folder` holds no run.
    """
    folder = Path(folder).absolute()
    if not any(row.start for row in read_journal(folder)):
        raise UserError(f"{folder}: no run was recorded there (no `start` in {JOURNAL_FILE}); give the folder of a run")
    sender = _start_sender(folder, store_uri(folder.parent, config.tracking.uri), config.tracking.experiment)
    return _end_sender(sender, folder, timeout)


def _start_sender(folder: Path, uri: str, experiment: str) -> "subprocess.Popen[str]":
    """The sender, in a session of its own (Ctrl-C is training's affair) and bounded where MLflow's client would wait for many minutes."""
    defaults = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    given = {
        "PYTHONPATH": path,
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_NAME": experiment,
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "mtgen.tracking.mlflow_sender", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**defaults, **os.environ, **given},
        start_new_session=True,
        text=True,
    )


def _end_sender(sender: "subprocess.Popen[str]", folder: Path, timeout: float) -> int:
    """Give the sender `timeout` seconds for the rest; returns the number of rows that are kept."""
    try:
        sender.communicate(f"{timeout}\n", timeout=timeout + 1)
    except subprocess.TimeoutExpired:
        sender.kill()  # safe at any moment: its state is renamed into place
        sender.wait()
    return pending_rows(folder)
