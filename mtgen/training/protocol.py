"""Where a worker stands, and how training ended: what the loop and whoever starts it tell each other."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtgen.errors import TrainingError

SnapshotCallback = Callable[[Any, int], tuple[dict[str, float], list[Path]]]
"""(averaged model, a `mtgen.models.model.Model`, which a driver need not import; images seen) -> numbers and pictures to keep with the run."""

ReportCallback = Callable[[Path], None]
"""Called with the run's folder; must not raise."""

STOP_FILE = "stop"
"""A file of this name in the run's folder asks the run to write a checkpoint and end."""

OUTCOME_FILE = "outcome.json"
"""In the run's folder: how its last training ended."""


class Resize:
    """How Ray Train's controller and a run's workers agree on a change of their number, by a file in the run's folder.

    The controller asks; the workers write a checkpoint, say that they are ready and wait to be ended, so that no image is trained on twice.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "resize"

    def ask(self) -> None:
        """For a checkpoint, and to wait."""
        self._file.write_text("asked", encoding="utf-8")

    def asked(self) -> bool:
        """Whether the workers are asked for, or wait for, a change."""
        return self._file.exists()

    def ready(self) -> None:
        """The checkpoint is written."""
        self._file.write_text("ready", encoding="utf-8")

    def is_ready(self) -> bool:
        """Whether the workers wait to be ended."""
        return self.asked() and self._file.read_text(encoding="utf-8") == "ready"

    def clear(self) -> None:
        """It is done, or no longer wanted.

        Raises:
            TrainingError: the folder cannot be written.
        """
        if self.asked():  # a folder that is read-only refuses to remove even what is not there
            try:
                self._file.unlink(missing_ok=True)
            except OSError as error:
                raise TrainingError(
                    f"{self._file}: cannot be removed ({error.strerror}); mend the folder, and start again"
                ) from error


@dataclass(frozen=True)
class WorkerContext:
    """Where a worker stands: its number, how many there are, its device, its CPU threads (torch's and DALI's), its node of the cluster."""

    rank: int
    world: int
    device: str
    threads: int
    decoding_threads: int
    node: str = ""


@dataclass(frozen=True)
class Outcome:
    """How training ended: "finished", "stopped" (asked to), "out of time" or "failed", at how many images, and why."""

    status: str
    images: int
    message: str = ""
    exit_status: int = 0

    def write(self, folder: Path) -> None:
        """Leave it where the driver looks for it; a disk that takes nothing is a warning: an error would have the workers start anew."""
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
        """What the last training of this run left; `None` where a worker was lost before it could."""
        path = folder / OUTCOME_FILE
        return Outcome(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
