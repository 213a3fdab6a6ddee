"""Batches of one worker: the order says which samples, a thread reads and decodes them ahead."""

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from mtgen.data.card import CARD
from mtgen.data.decode import Channels, Decoder, alone
from mtgen.data.geometry import window
from mtgen.data.index import Index
from mtgen.data.order import Order
from mtgen.errors import DamagedSample
from mtgen.schema import Batch

PRESENT = ("class", "mask")


@dataclass(frozen=True)
class _Step:
    """One global batch: positions and sample numbers of all its rows, and which rows are this worker's."""

    position: NDArray[np.int64]
    sample: NDArray[np.int64]
    mine: slice


class _Reader:
    """Reads and decodes this worker's rows of a step."""

    def __init__(
        self,
        index: Index,
        batch: int,
        *,
        resolution: int,
        channels: Channels,
        device: str,
        threads: int,
        crop: float,
        flip: bool,
        seed: int,
    ) -> None:
        self.index, self.crop, self.flip, self.seed = index, crop, flip, seed
        self.decoder = Decoder(resolution, channels, threads, device, batch, masks=bool(index.present["mask"].any()))

    def read(self, step: _Step) -> Batch:
        """This worker's part of the step, decoded; `DataError` names the sample that cannot be."""
        index, position, sample = self.index, step.position[step.mine], step.sample[step.mine]
        images = [index.read(i, "image") for i in sample]
        masks = [index.read(i, "mask") if index.present["mask"][i] else None for i in sample]
        view = window(index.width[sample], index.height[sample], self.crop, self.flip, self.seed, position)
        image, mask = self.decoder.decode(images, masks, view, lambda row: index.name(sample[row]))
        mask = self._classes(mask, sample)
        step_present = {c: torch.from_numpy(index.present[c][step.sample]) for c in PRESENT}
        return Batch(
            position=torch.from_numpy(position.copy()),
            image=image,
            label=torch.from_numpy(np.maximum(index.label[sample], 0)).to(image.device),
            mask=mask,
            present={c: torch.from_numpy(index.present[c][sample]).to(image.device) for c in PRESENT},
            step_position=torch.from_numpy(step.position),
            step_present=step_present,
        )

    def _classes(self, mask: torch.Tensor, sample: NDArray[np.int64]) -> torch.Tensor:
        """`[B,H,W]` stored mask values -> mask classes of the card; any other value is damage."""
        if not self.decoder.masks:
            return mask
        tables, rows = np.stack([self.index.mask_table(i) for i in sample]), np.arange(len(sample))[:, None, None]
        found: Any
        if mask.device.type == "cpu":  # in NumPy: torch would start threads of its own here
            found = tables[rows, mask.numpy()]
            wrong = np.argwhere(found < 0)
        else:
            found = torch.from_numpy(tables).to(mask.device)[torch.from_numpy(rows).to(mask.device), mask]
            wrong = (found < 0).nonzero().cpu().numpy()
        if len(wrong):
            row, y, x = wrong[0]
            known = f"{CARD} names {len(self.index.card.mask_classes)} classes from 0"
            what = f"mask class {int(mask[row, y, x])}, {known}; `mtgen shards validate` lists all such samples"
            raise DamagedSample("mask", self.index.name(sample[row]), what)
        return torch.as_tensor(found)


class Loader:
    """This worker's part of every global batch, from `position` on and without end; decoding runs ahead in one thread.

    Args:
        index: the split to read.
        batch_size: samples of a global batch; a multiple of `world`.
        rank, world: this worker's number and how many there are; it reads rows `[rank*b, (rank+1)*b)`, `b = batch_size / world`.
        resolution, channels: of the images that come out ("rgb" or "grey").
        seed: of the order and the crops.
        position: samples that all workers together have consumed since the start of the run.
        crop, flip: see `mtgen.data.geometry.window`.
        threads: that DALI decodes with.
        device: "cpu", or "cuda" to decode on the GPU.
        prefetch: batches that are decoded ahead.
        order: which sample stands at a position; default: a permutation of the whole split for every epoch.

    Attributes:
        waited: seconds that the consumer has waited for data so far.
        position: where the next batch begins that is handed out.
    """

    def __init__(
        self,
        index: Index,
        *,
        batch_size: int,
        rank: int,
        world: int,
        resolution: int,
        channels: Channels,
        seed: int,
        position: int = 0,
        crop: float = 1.0,
        flip: bool = False,
        threads: int = 1,
        device: str = "cpu",
        prefetch: int = 2,
        order: Order | None = None,
    ) -> None:
        if batch_size % world or not 0 <= rank < world:
            raise ValueError(f"worker {rank} of {world} cannot have an equal part of {batch_size} samples")
        self.waited, self.position, self.batch_size = 0.0, position, batch_size
        share = batch_size // world
        order = order or Order(len(index), seed)
        mine = slice(rank * share, (rank + 1) * share)

        def steps() -> Iterator[_Step]:
            for begin in count(position, batch_size):
                at = np.arange(begin, begin + batch_size, dtype=np.int64)
                yield _Step(at, order.sample(at), mine)

        reader = _Reader(
            index, share, resolution=resolution, channels=channels, device=device, threads=threads, crop=crop, flip=flip, seed=seed
        )
        self._ahead = _Ahead(reader, steps(), prefetch)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        begin = time.monotonic()
        batch = next(self._ahead)
        self.waited += time.monotonic() - begin
        self.position += self.batch_size
        return batch

    def close(self) -> None:
        """Stop reading ahead and end the thread."""
        self._ahead.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def once(
    index: Index,
    *,
    batch_size: int,
    resolution: int,
    channels: Channels,
    device: str,
    threads: int,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """The split once, in the index's order and without augmentation; the last batch may be smaller. For evaluation.

    Each global batch of `batch_size` samples is dealt to the workers in contiguous parts that differ by one sample at most;
    a worker whose part is empty gets no batch. `position` is the sample's number in the index. `limit` stops after so many samples.
    """
    total = min(len(index), limit if limit is not None else len(index))

    def steps() -> Iterator[_Step]:
        for begin in range(0, total, batch_size):
            at = np.arange(begin, min(begin + batch_size, total), dtype=np.int64)
            mine = slice(len(at) * rank // world, len(at) * (rank + 1) // world)
            if mine.start < mine.stop:
                yield _Step(at, at, mine)

    share = -(-batch_size // world)
    reader = _Reader(index, share, resolution=resolution, channels=channels, device=device, threads=threads, crop=1.0, flip=False, seed=0)
    ahead = _Ahead(reader, steps(), 2)
    try:
        yield from ahead
    finally:
        ahead.close()


class _Ahead:
    """Runs a reader over steps in a thread, `depth` finished batches ahead; what goes wrong there is raised to the consumer."""

    def __init__(self, reader: _Reader, steps: Iterator[_Step], depth: int) -> None:
        self._queue: _Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        torch.get_num_threads()  # settles the number of the thread that consumes, before the other one settles its own
        thread = threading.Thread(target=_work, args=(reader, steps, self._queue, self._stop), name="mtgen loader", daemon=True)
        thread.start()
        # also when nobody closes it: a thread inside DALI while Python shuts down ends the process with a crash
        self.close = weakref.finalize(self, _end, self._stop, thread)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._failure is None:
            if self._stop.is_set():
                raise ValueError("this loader is closed")
            item = self._queue.get()
            if isinstance(item, Batch):
                return item
            self._failure = item
        raise self._failure


_Queue = queue.Queue[Batch | BaseException]


def _work(reader: _Reader, steps: Iterator[_Step], ready: _Queue, stop: threading.Event) -> None:
    alone()
    try:
        for step in steps:
            if not _put(reader.read(step), ready, stop):
                return
        _put(StopIteration(), ready, stop)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer has to hear of it
        _put(error, ready, stop)


def _put(item: Batch | BaseException, ready: _Queue, stop: threading.Event) -> bool:
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
