"""What the training loop and the program that starts it exchange: the worker's context, requests, and the outcome."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtgen.errors import TrainingError, UserError

SnapshotCallback = Callable[[Any, int], tuple[dict[str, float], list[Path]]]
"""(averaged model, images seen) -> metrics, and pictures to keep with the run.

The model is a `mtgen.models.model.Model`, whose module a driver does not need to import.
"""

ReportCallback = Callable[[Path], None]
"""Called with the run's folder; must not raise."""

STOP_FILE = "stop"
"""A file of this name in the run's folder asks the run to write a checkpoint and end."""

CHECKPOINT_FILE = "checkpoint"
"""A file of this name in the run's folder asks the run to write a checkpoint and continue; the run removes it."""

OUTCOME_FILE = "outcome.json"
"""In the run's folder: how its last training ended."""


class Resize:
    """How Ray Train's controller and a run's workers agree to change the number of workers: a file in the run's folder.

    The controller asks. The workers write a checkpoint, report that they are ready, and wait until they are ended, so
    that no image is trained on twice.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "resize"

    def ask(self) -> None:
        """Ask the workers to write a checkpoint and to wait."""
        self._file.write_text("asked", encoding="utf-8")

    def asked(self) -> bool:
        """Whether a change was requested and is not completed."""
        return self._file.exists()

    def ready(self) -> None:
        """Report that the checkpoint is written."""
        self._file.write_text("ready", encoding="utf-8")

    def is_ready(self) -> bool:
        """Whether the workers wait to be ended."""
        return self.asked() and self._file.read_text(encoding="utf-8") == "ready"

    def clear(self) -> None:
        """Remove the request: it is completed or withdrawn.

        Raises:
            TrainingError: the folder cannot be written.
        """
        if self.asked():  # in a read-only folder, removing fails even if there is no file
            try:
                self._file.unlink(missing_ok=True)
            except OSError as error:
                raise TrainingError(
                    f"{self._file}: cannot be removed ({error.strerror}); fix the folder's permissions, and start again"
                ) from error


@dataclass(frozen=True)
class WorkerContext:
    """Where a worker runs.

    Attributes:
        rank, world: its number, and the number of workers.
        device: "cpu" or "cuda".
        threads, decoding_threads: CPU threads of torch and of DALI.
        node: its node of the Ray cluster; "" without a cluster.
    """

    rank: int
    world: int
    device: str
    threads: int
    decoding_threads: int
    node: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that writes, logs and decides for all."""
        return self.rank == 0


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        status: "finished", "stopped" (on request), "out of time" or "failed".
        images: images seen.
        message: why, if there is more to say.
        exit_status: of the command.
    """

    status: str
    images: int
    message: str = ""
    exit_status: int = 0

    @staticmethod
    def failure(images: int, error: UserError) -> "Outcome":
        """The outcome of a training that `error` ended."""
        return Outcome("failed", images, str(error), error.status)

    @property
    def failed(self) -> bool:
        """Whether an error ended training."""
        return self.status == "failed"

    def write(self, folder: Path) -> None:
        """Write the outcome for the driver; a full disk is only a warning, since an error would restart the workers."""
        path = folder / OUTCOME_FILE
        beside = path.with_suffix(".new")
        try:
            beside.write_text(json.dumps(asdict(self)), encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            print(
                f"warning: {path}: cannot be written ({error.strerror}). Training {self.status}: {self.message}",
                flush=True,
            )

    @staticmethod
    def read(folder: Path) -> "Outcome | None":
        """The outcome of the run's last training; `None` if a worker was lost before it was written."""
        path = folder / OUTCOME_FILE
        return Outcome(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
