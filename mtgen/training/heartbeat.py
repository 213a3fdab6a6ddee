"""Heartbeats of the workers: files in the run's folder, by which the driver distinguishes hung from busy workers."""

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
HEARTBEAT_SECONDS = 0.5  # between two heartbeats
_FILE_BYTES = 512  # a file of fixed size is overwritten in place, so a full disk does not stop the heartbeats


@dataclass(frozen=True)
class HeartbeatRecord:
    """What a worker reports in one heartbeat.

    Attributes:
        rank: of the worker.
        number: of the heartbeat; it grows while the process lives, whatever training does.
        steps: that the worker has completed.
        busy: what it does that may take long, such as "evaluating"; "" while it trains.
        pid, born: its process, and the time at which that was started, seconds since 1970.
        node: ID of its node in the Ray cluster; "" without a cluster.
    """

    rank: int
    number: int
    steps: int
    busy: str
    pid: int
    born: float
    node: str


class Heartbeat:
    """Writes heartbeats from a separate thread; a context manager.

    Where nothing can be written there are no heartbeats, and no error: the next checkpoint reports what is wrong.
    """

    def __init__(self, folder: Path, worker: WorkerContext) -> None:
        self._path = folder / HEARTBEAT_FOLDER / f"{worker.rank}.json"
        self._rank = worker.rank
        self._node = worker.node
        self._pid = os.getpid()
        self._born = psutil.Process().create_time()
        self._steps = 0
        self._busy = "starting"
        self._number = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def step(self) -> None:
        """Count one completed step."""
        self._steps += 1
        self._busy = ""

    @contextlib.contextmanager
    def busy(self, with_what: str) -> Iterator[None]:
        """Report inside the `with` block that the worker makes no steps; the outermost block's text is reported."""
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
                record = HeartbeatRecord(
                    self._rank, self._number, self._steps, self._busy, self._pid, self._born, self._node
                )
                with contextlib.suppress(OSError):
                    os.pwrite(descriptor, json.dumps(asdict(record)).encode().ljust(_FILE_BYTES), 0)
                if self._end.wait(HEARTBEAT_SECONDS):
                    break
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_heartbeats(folder: Path) -> list[HeartbeatRecord]:
    """The last heartbeat of each worker of the run in `folder`, by rank; a partially written one is omitted."""
    records = []
    for path in (folder / HEARTBEAT_FOLDER).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads(path.read_bytes())
            records.append(HeartbeatRecord(**{field.name: values[field.name] for field in fields(HeartbeatRecord)}))
    return sorted(records, key=lambda record: record.rank)
