"""Batches of one worker: the order says which samples, a thread reads and decodes them ahead."""

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import count
from types import TracebackType
from typing import Self

import numpy as np
import torch

from mtgen.data.decode import single_threaded
from mtgen.data.mixture import Samples
from mtgen.data.reader import BatchReader, Damage, GlobalBatch
from mtgen.data.sampler import Order, SampleOrder
from mtgen.data.transform_spec import TransformSpec
from mtgen.schema import Batch

POSITIONS_PER_ORDER_CALL = 2048
"""Positions that the order is asked for at once: a call costs as much for a few as for many."""


class Loader:
    """This worker's part of every global batch, from `position` on and without end; decoding runs ahead in one thread.

    Args:
        index: the split to read.
        view: what is read of a sample, and how.
        batch_size: samples of a global batch; a multiple of `world`.
        rank, world: this worker's number and how many there are; it reads rows `[rank*b, (rank+1)*b)`, `b = batch_size / world`.
        position: samples that all workers together have consumed since the start of the run.
        prefetch: batches that are decoded ahead.
        order: which sample stands at a position; default: a permutation of the whole split for every epoch.

    Attributes:
        damaged: positions of the batches handed out whose sample was damaged and replaced, and what was wrong with it.
        waited: seconds that the consumer has waited for data so far.
        position: where the next batch begins that is handed out.
    """

    def __init__(
        self,
        index: Samples,
        view: TransformSpec,
        *,
        batch_size: int,
        rank: int,
        world: int,
        position: int = 0,
        prefetch: int = 2,
        order: SampleOrder | None = None,
    ) -> None:
        if batch_size % world or not 0 <= rank < world:
            raise ValueError(f"worker {rank} of {world} cannot have an equal part of {batch_size} samples")
        self.waited = 0.0
        self.position = position
        self.batch_size = batch_size
        share = batch_size // world
        policy: SampleOrder = order or Order(len(index), view.seed)
        mine = slice(rank * share, (rank + 1) * share)

        def steps() -> Iterator[GlobalBatch]:
            together = max(POSITIONS_PER_ORDER_CALL // batch_size, 1) * batch_size
            for begin in count(position, together):
                at = np.arange(begin, begin + together, dtype=np.int64)
                sample = policy.sample(at)
                later = policy.sample(at + policy.reach) if index.remote else sample
                for part in range(0, together, batch_size):
                    step = slice(part, part + batch_size)
                    index.prefetch(sample[step][mine])
                    index.prefetch(later[step][mine])
                    yield GlobalBatch(at[step].copy(), sample[step], mine)

        reader = BatchReader(index, view, share)
        self.damaged: Damage = []
        self._reader = reader
        self._ahead = _Ahead(reader, steps(), prefetch)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        begin = time.monotonic()
        batch, damaged = next(self._ahead)
        self.damaged += damaged
        self.waited += time.monotonic() - begin
        self.position += self.batch_size
        return batch

    @property
    def rebuilds(self) -> int:
        """How often the decoders' pipelines failed on damaged samples and were built again."""
        return self._reader.rebuilds

    def close(self) -> None:
        """Stop reading ahead and end the thread."""
        self._ahead.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def iterate_split(
    index: Samples,
    view: TransformSpec,
    *,
    batch_size: int,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
) -> Iterator[Batch]:
    """The split once, in the index's order, as `view.plain` shows it; the last batch may be smaller. For evaluation.

    Batches are dealt out whole, in turn: the worker `rank` has every `world`-th. So each batch is the same for any number of workers.
    `position` is the sample's number in the index. `limit` stops after so many samples; the first `start` batches are passed over.
    """
    total = min(len(index), limit if limit is not None else len(index))

    def steps() -> Iterator[GlobalBatch]:
        for begin in range((start + rank) * batch_size, total, batch_size * world):
            at = np.arange(begin, min(begin + batch_size, total), dtype=np.int64)
            yield GlobalBatch(at, at, slice(0, len(at)))

    reader = BatchReader(index, view.plain, batch_size)
    ahead = _Ahead(reader, steps(), 2)
    try:
        yield from (batch for batch, _ in ahead)
    finally:
        ahead.close()


class _Ahead:
    """Runs a reader over steps in a thread, `depth` finished batches ahead; what goes wrong there is raised to the consumer."""

    def __init__(self, reader: BatchReader, steps: Iterator[GlobalBatch], depth: int) -> None:
        self._queue: _Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        torch.get_num_threads()  # settles the number of the thread that consumes, before the other one settles its own
        thread = threading.Thread(
            target=_work, args=(reader, steps, self._queue, self._stop), name="mtgen loader", daemon=True
        )
        thread.start()
        # also when nobody closes it: a thread inside DALI while Python shuts down ends the process with a crash
        self.close = weakref.finalize(self, _end, self._stop, thread)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Batch, Damage]:
        if self._failure is None:
            if self._stop.is_set():
                raise ValueError("this loader is closed")
            item = self._queue.get()
            if isinstance(item, tuple):
                return item
            self._failure = item
        raise self._failure


_Item = tuple[Batch, Damage] | BaseException
_Queue = queue.Queue[_Item]


def _work(reader: BatchReader, steps: Iterator[GlobalBatch], ready: _Queue, stop: threading.Event) -> None:
    single_threaded()
    try:
        for step in steps:
            if not _put(reader.read(step), ready, stop):
                return
        _put(StopIteration(), ready, stop)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer has to hear of it
        _put(error, ready, stop)


def _put(item: _Item, ready: _Queue, stop: threading.Event) -> bool:
    """Wait for room; `False` when the consumer has closed."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join()
