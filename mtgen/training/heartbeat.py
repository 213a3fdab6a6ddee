"""Signs of life of the workers: files in the run's folder, from which the driver tells one that hangs from one that is busy."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from mtgen.training.protocol import WorkerContext

HEARTBEAT_FOLDER = "pulse"
HEARTBEAT_SECONDS = 0.5  # seconds between two beats
_FILE_BYTES = 512  # bytes of a file: it is written over in place, so that a full disk stops no beat


@dataclass(frozen=True)
class HeartbeatRecord:
    """What a worker says of itself.

    Attributes:
        number: of the beat: it grows while the process lives, whatever training does.
        steps: that it has done.
        busy: what it is at that may take long, such as "evaluating"; "" between these.
        pid, born: its process, and when that was started, seconds since 1970.
        node: of the cluster, as Ray calls it; "" where there is none.
    """

    rank: int
    number: int
    steps: int
    busy: str
    pid: int
    born: float
    node: str


class Heartbeat:
    """Beats from a thread of its own. Where nothing can be written it is silent: the next checkpoint will say what is wrong."""

    def __init__(self, folder: Path, place: WorkerContext) -> None:
        self._path = folder / HEARTBEAT_FOLDER / f"{place.rank}.json"
        self._rank = place.rank
        self._node = place.node
        self._pid = os.getpid()
        self._born = psutil.Process().create_time()
        self._steps = 0
        self._busy = "starting"
        self._number = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def step(self) -> None:
        """One step more is done."""
        self._steps += 1
        self._busy = ""

    @contextlib.contextmanager
    def busy(self, with_what: str) -> Iterator[None]:
        """While this goes on, the worker is not expected to make steps."""
        before, self._busy = self._busy, self._busy or with_what
        try:
            yield
        finally:
            self._busy = before

    def _run(self) -> None:
        try:
            self._path.parent.mkdir(exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
        except OSError:
            return
        with open(descriptor, "wb", buffering=0):
            while True:
                self._number += 1
                beat = HeartbeatRecord(
                    self._rank, self._number, self._steps, self._busy, self._pid, self._born, self._node
                )
                with contextlib.suppress(OSError):
                    os.pwrite(descriptor, json.dumps(asdict(beat)).encode().ljust(_FILE_BYTES), 0)
                if self._end.wait(HEARTBEAT_SECONDS):
                    break
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_heartbeats(folder: Path) -> list[HeartbeatRecord]:
    """The last beat of each worker of the run in `folder`, by rank; one that is just being written is left out."""
    beats = []
    for path in (folder / HEARTBEAT_FOLDER).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            said = json.loads(path.read_bytes())
            beats.append(HeartbeatRecord(**{field.name: said[field.name] for field in fields(HeartbeatRecord)}))
    return sorted(beats, key=lambda beat: beat.rank)
