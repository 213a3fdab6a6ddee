"""Heartbeats of the workers: files in the run's folder, by which the driver distinguishes hung from busy workers."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import torch.distributed as dist

from mtgen.training.protocol import WorkerContext
from mtgen.training.stacks import StackRecorder
from mtgen.utils.periodic import Periodic

HEARTBEAT_FOLDER = "pulse"
HEARTBEAT_SECONDS = 0.5  # between two heartbeats
_FILE_BYTES = 1024  # a file of fixed size is overwritten in place, so a full disk does not stop the heartbeats


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
        place: its host, and its GPU if it has one.
        collectives: that it has entered, see `count_collectives`.
        thread, stacks: the thread that trains, and the descriptor of the process's `StackRecorder`.
    """

    rank: int
    number: int
    steps: int
    busy: str
    pid: int
    born: float
    node: str
    place: str = ""
    collectives: int = 0
    thread: int = 0
    stacks: int = -1


def count_collectives() -> int:
    """Collectives that this process has entered, over all process groups.

    All workers enter the same ones in the same order, so the one with the fewest is missing in the others' next one.
    """
    if not dist.is_initialized():
        return 0
    with contextlib.suppress(RuntimeError):  # a backend that does not count: gloo and NCCL do
        groups: list[Any] = list(dist.distributed_c10d._world.pg_map)
        return sum(group._get_sequence_number_for_group() for group in groups)
    return 0


class Heartbeat:
    """Writes heartbeats from a separate thread; a context manager.

    Where nothing can be written there are no heartbeats, and no error: the next checkpoint reports what is wrong.
    """

    def __init__(self, folder: Path, worker: WorkerContext) -> None:
        self._path = folder / HEARTBEAT_FOLDER / f"{worker.rank}.json"
        self._rank = worker.rank
        self._node = worker.node
        self._place = socket.gethostname() + (f", GPU {os.environ['LOCAL_RANK']}" if worker.device == "cuda" else "")
        self._pid = os.getpid()
        self._born = psutil.Process().create_time()
        self._thread = 0
        self._steps = 0
        self._busy = "starting"
        self._number = 0
        self._file = -1
        self._stacks = StackRecorder()
        self._beats = Periodic(HEARTBEAT_SECONDS, self._beat, "heartbeat")

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        self._stacks.start()
        self._beats.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beats.stop()
        if self._file >= 0:
            os.close(self._file)
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._stacks.stop()

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

    def _beat(self) -> None:
        if self._file < 0:
            try:
                self._path.parent.mkdir(exist_ok=True)
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
            except OSError:
                self._beats.end()
                return
        self._number += 1
        record = HeartbeatRecord(
            rank=self._rank,
            number=self._number,
            steps=self._steps,
            busy=self._busy,
            pid=self._pid,
            born=self._born,
            node=self._node,
            place=self._place,
            collectives=count_collectives(),
            thread=self._thread,
            stacks=self._stacks.descriptor,
        )
        with contextlib.suppress(OSError):
            os.pwrite(self._file, json.dumps(asdict(record)).encode().ljust(_FILE_BYTES), 0)


def read_heartbeats(folder: Path) -> list[HeartbeatRecord]:
    """The last heartbeat of each worker of the run in `folder`, by rank; a partially written one is omitted."""
    records = []
    for path in (folder / HEARTBEAT_FOLDER).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads(path.read_bytes())
            records.append(HeartbeatRecord(**{field.name: values[field.name] for field in fields(HeartbeatRecord)}))
    return sorted(records, key=lambda record: record.rank)
