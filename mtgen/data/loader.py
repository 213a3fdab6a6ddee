"""Batches of one worker: the order determines the samples, a background thread reads and decodes them."""

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from mtgen.data.decode import single_threaded
from mtgen.data.device_stream import DeviceStream
from mtgen.data.mixture import Samples
from mtgen.data.orders.permutation import Order, SampleOrder
from mtgen.data.reader import BatchReader, Damage, GlobalBatch
from mtgen.data.transform_spec import TransformSpec
from mtgen.errors import DataError
from mtgen.schema import Batch

POSITIONS_PER_ORDER_CALL = 2048
"""Positions per call of `SampleOrder.sample`: a call takes about the same time for few positions as for many."""


class Loader:
    """An endless iterator over this worker's part of every global batch; one thread decodes ahead.

    Args:
        index: the split to read.
        spec: components to read of each sample, and how to transform them.
        batch_size: size of a global batch; a multiple of `world`.
        rank, world: this worker's number and the number of workers; with `b = batch_size / world`, the worker reads
            rows `[rank*b, (rank+1)*b)` of every global batch.
        position: number of samples that all workers together have consumed since the start of the run.
        prefetch: number of batches that are decoded ahead.
        order: position -> sample; default: a new permutation of the whole split for every epoch.
        prepare: further work on each batch, in the background thread.

    Attributes:
        damaged: positions in the returned batches whose sample was damaged and replaced, and what was wrong with it;
            the consumer clears the list when it has counted them.
        waited: seconds that the consumer has waited for data so far.
        position: first position of the next batch.
        error: what is wrong with the first batch that cannot be read; `None` as far as `look_ahead` has looked.
    """

    def __init__(
        self,
        index: Samples,
        spec: TransformSpec,
        *,
        batch_size: int,
        rank: int,
        world: int,
        position: int = 0,
        prefetch: int = 2,
        order: SampleOrder | None = None,
        prepare: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        if batch_size % world or not 0 <= rank < world:
            given = f"rank={rank}, world={world}, batch_size={batch_size}"
            raise ValueError(f"{given}: needs 0 <= rank < world, and a batch_size divisible by world")
        self.waited = 0.0
        self.position = position
        self.batch_size = batch_size
        rows = batch_size // world
        mine = slice(rank * rows, (rank + 1) * rows)
        batches = _global_batches(index, order or Order(len(index), spec.seed), batch_size, mine, position)
        self.damaged: Damage = []
        self.error: DataError | None = None
        self._ahead: deque[tuple[Batch, Damage]] = deque()
        self._reader = BatchReader(index, spec, rows)
        self._prefetched = _Prefetched(self._reader, batches, prefetch, prepare)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not self.look_ahead(1):
            assert self.error is not None
            raise self.error
        batch, damaged = self._ahead.popleft()
        self.damaged += damaged
        self.position += self.batch_size
        return batch

    def look_ahead(self, batches: int) -> int:
        """Wait for the next `batches` batches; returns how many there are: fewer if `error` is in the place of one."""
        begin = time.monotonic()
        while len(self._ahead) < batches and self.error is None:
            try:
                self._ahead.append(next(self._prefetched))
            except DataError as error:
                self.error = error
        self.waited += time.monotonic() - begin
        return len(self._ahead)

    @property
    def rebuilds(self) -> int:
        """How many times the decoders' pipelines failed on damaged samples and were rebuilt."""
        return self._reader.rebuilds

    def close(self) -> None:
        """Stop the background thread."""
        self._prefetched.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _global_batches(
    index: Samples, order: SampleOrder, batch_size: int, mine: slice, position: int
) -> Iterator[GlobalBatch]:
    """Endless global batches from `position` on. Requests the shards of this worker's rows before they are read."""
    chunk = max(POSITIONS_PER_ORDER_CALL // batch_size, 1)
    for begin in count(position, chunk * batch_size):
        positions = np.arange(begin, begin + chunk * batch_size, dtype=np.int64).reshape(chunk, batch_size)
        samples = order.sample(positions.ravel()).reshape(positions.shape)
        if index.remote:
            later = order.ahead(positions[:, mine].ravel()).reshape(chunk, -1)
        for number in range(chunk):
            if index.remote:
                index.prefetch(samples[number, mine])
                index.prefetch(later[number])
            yield GlobalBatch(positions[number].copy(), samples[number], mine)


def iterate_split(
    index: Samples,
    spec: TransformSpec,
    *,
    batch_size: int,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
) -> Iterator[Batch]:
    """Iterate over a split once, in the index's order, transformed by `spec.plain`. For evaluation.

    Whole batches are distributed round-robin over workers, so that a batch does not depend on the number of workers.
    A batch's `position` holds the samples' numbers in the index.

    Args:
        batch_size: samples per batch; the last one may be smaller.
        limit: stop after this number of samples.
        rank, world: this worker's number and the number of workers.
        start: number of batches to skip.
    """
    total = min(len(index), limit if limit is not None else len(index))

    def batches() -> Iterator[GlobalBatch]:
        for begin in range((start + rank) * batch_size, total, batch_size * world):
            samples = np.arange(begin, min(begin + batch_size, total), dtype=np.int64)
            yield GlobalBatch(samples, samples, slice(0, len(samples)))

    prefetched = _Prefetched(BatchReader(index, spec.plain, batch_size), batches(), depth=2)
    try:
        yield from (batch for batch, _ in prefetched)
    finally:
        prefetched.close()


class _Prefetched:
    """Reads batches in a background thread, up to `depth` ahead; errors are raised to the consumer.

    On a GPU the thread has a stream of its own, and the consumer's current stream waits for each batch.
    """

    def __init__(
        self,
        reader: BatchReader,
        batches: Iterator[GlobalBatch],
        depth: int,
        prepare: Callable[[Batch], Batch] = lambda batch: batch,
        stream: DeviceStream | None = None,
    ) -> None:
        self._stream = stream or DeviceStream(reader.decoder.device)
        self._queue: _Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        torch.get_num_threads()  # initializes the consumer's number of threads before the new thread sets its own
        read = map(reader.read, batches)
        items = ((prepare(batch), damaged) for batch, damaged in read)
        thread = threading.Thread(
            target=_read_all, args=(items, self._queue, self._stop, self._stream), name="mtgen loader", daemon=True
        )
        thread.start()
        # finalize also runs if nobody calls close: a thread inside DALI crashes the process when Python shuts down
        self.close = weakref.finalize(self, _stop_thread, self._stop, thread)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Batch, Damage]:
        if self._failure is None:
            if self._stop.is_set():
                raise ValueError("this loader is closed")
            item = self._queue.get()
            if isinstance(item, tuple):
                batch, damage, finished = item
                return self._stream.receive(batch, finished), damage
            self._failure = item
        raise self._failure


_Item = tuple[Batch, Damage, Any] | BaseException
_Queue = queue.Queue[_Item]


def _read_all(
    items: Iterator[tuple[Batch, Damage]], output: _Queue, stop: threading.Event, stream: DeviceStream
) -> None:
    single_threaded()
    try:
        while True:
            with stream.work():
                item = next(items, None)
            if item is None:
                break
            if not _put((*item, stream.finished()), output, stop):
                return
        _put(StopIteration(), output, stop)
    except BaseException as error:  # noqa: BLE001 - every error is passed on to the consumer
        _put(error, output, stop)


def _put(item: _Item, output: _Queue, stop: threading.Event) -> bool:
    """Put an item as soon as there is room; `False` if the consumer has closed the loader."""
    while not stop.is_set():
        try:
            output.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _stop_thread(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join()
