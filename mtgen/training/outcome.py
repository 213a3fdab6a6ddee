"""Where a worker stands, and how training ended: what the loop and whoever starts it tell each other."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

STOP = "stop"
"""A file of this name in the run's folder asks the run to write a checkpoint and end."""

FILE = "outcome.json"


@dataclass(frozen=True)
class Place:
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
        path = folder / FILE
        beside = path.with_suffix(".new")
        try:
            beside.write_text(json.dumps(asdict(self)), encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            print(f"warning: {path}: cannot be written ({error.strerror}). Training {self.status}: {self.message}", flush=True)

    @staticmethod
    def read(folder: Path) -> "Outcome | None":
        """What the last training of this run left; `None` where a worker was lost before it could."""
        path = folder / FILE
        return Outcome(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
