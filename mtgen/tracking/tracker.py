"""Records a training run in its journal, which a separate process sends to MLflow.

Training writes only the journal, so MLflow can neither slow nor stop it; see `mlflow_sender`.
"""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
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

SENDER_RESTART_SECONDS = 60.0
"""Shortest interval between two starts of the sender after it was killed, in seconds."""


class Tracker:
    """The journal of a training run and the process that sends it to MLflow; used on rank 0.

    No method waits for MLflow, except `finish`. A resumed run continues its MLflow run.

    Args:
        config: resolved configuration; its keys become MLflow's params, its text the artifact `config.yaml`.
        folder: folder of the run.
        card: description of the data set.
        fingerprint: fingerprint of the data set.
        images: position from which the run starts or resumes; later rows of the journal are removed.
        workers: number of workers.
        hosts: host name of each worker, by rank.
    """

    def __init__(
        self,
        config: "Config",
        folder: str | Path,
        card: "DatasetCard",
        fingerprint: str,
        images: int = 0,
        workers: int = 1,
        hosts: Sequence[str] = (),
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
            "hosts": list(hosts),
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
        system_metrics(
            self.folder
        )  # CPU utilization is measured since the last call, so the first value is meaningless
        self._system_at = -1
        self._sender = _start_sender(self.folder, self._uri, self._experiment)
        self._started = time.monotonic()

    def row(self, images: int, values: Mapping[str, float]) -> dict[str, float]:
        """Record metrics by name at a position, and return them as written.

        The first row at a position also has the system's load (`system/...`).
        """
        if images > self._system_at:
            values = {**values, **system_metrics(self.folder)}
            self._system_at = images
        written = self.journal.row(images, values)
        was_killed = self._sender.poll() is not None
        if was_killed and time.monotonic() - self._started > SENDER_RESTART_SECONDS:
            self._sender, self._started = _start_sender(self.folder, self._uri, self._experiment), time.monotonic()
        return written

    def tags(self, images: int, texts: Mapping[str, str]) -> None:
        """Record texts about the whole run, by name; a later text replaces an earlier one."""
        self.journal.tags(images, texts)

    def artifact(self, images: int, path: str | Path, to: str = "") -> None:
        """Record the file `path` as an artifact of the run, in the folder `to`."""
        self.journal.artifact(images, path, to)

    def phase(self, images: int, text: str) -> None:
        """Record what the run does while it logs no metrics, for progress displays; "" when training continues."""
        self.journal.phase(images, text)

    def finish(self, images: int, status: str = "FINISHED", timeout: float = 30.0) -> int:
        """End the run as FINISHED, FAILED or KILLED, and wait at most `timeout` seconds until everything is sent.

        Returns:
            Number of rows that are not sent yet; a resume or `send_pending` sends them.
        """
        self.journal.append(images, status=status)
        self.journal.close()
        if self._sender.poll() is not None:
            self._sender = _start_sender(self.folder, self._uri, self._experiment)
        return _end_sender(self._sender, self.folder, timeout)


def send_pending(config: "Config", folder: str | Path, timeout: float = 30.0) -> int:
    """Send the rows of a run's journal that MLflow does not have yet.

    Returns:
        Number of rows that are not sent after `timeout` seconds.

    Raises:
        UserError: `folder` has no run.
    """
    folder = Path(folder).absolute()
    if not any(row.start for row in read_journal(folder)):
        raise UserError(f"{folder}: not a run (no `start` in {JOURNAL_FILE}); use the folder of a run")
    sender = _start_sender(folder, store_uri(folder.parent, config.tracking.uri), config.tracking.experiment)
    return _end_sender(sender, folder, timeout)


def _start_sender(folder: Path, uri: str, experiment: str) -> "subprocess.Popen[str]":
    """Start the sender in its own session, out of reach of Ctrl-C, with short timeouts for MLflow's client."""
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
    """Give the sender `timeout` seconds for the rest, and return the number of rows that are not sent."""
    try:
        sender.communicate(f"{timeout}\n", timeout=timeout + 1)
    except subprocess.TimeoutExpired:
        sender.kill()  # safe at any time: its state file is replaced atomically
        sender.wait()
    return pending_rows(folder)
