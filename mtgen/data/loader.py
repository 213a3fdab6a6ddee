"""Batches of one worker: the order says which samples, a thread reads and decodes them ahead."""

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from operator import itemgetter
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from mtgen import counter
from mtgen.config import Sound
from mtgen.data.boxes import Annotation, annotation, in_window
from mtgen.data.card import CARD
from mtgen.data.colour import jitter
from mtgen.data.decode import REMEDY, Channels, DamagedBatch, Decoder, single_threaded
from mtgen.data.geometry import Window, window
from mtgen.data.index import OnDamage
from mtgen.data.mixture import Samples
from mtgen.data.order import Order, Policy
from mtgen.data.sound import SoundDecoder
from mtgen.data.text import tokens
from mtgen.errors import DamagedSample, DataError
from mtgen.schema import COMPONENTS, Batch

USUAL = ("class", "mask")
"""Components that are read unless others are asked for."""

BOXES = 32
"""Boxes of an image that are kept at most."""

TOKENS = 64
"""Length of a caption, tokens."""

Damage = list[tuple[int, DamagedSample]]
"""Positions whose sample was damaged, and what was wrong with it."""

ATTEMPTS = 100
"""Replacements that are tried for one position before its data set counts as damaged through and through."""

AHEAD = 2048
"""Positions that the order is asked for at once: a call costs as much for a few as for many."""


@dataclass(frozen=True)
class _Step:
    """One global batch: positions and sample numbers of all its rows, and which rows are this worker's."""

    position: NDArray[np.int64]
    sample: NDArray[np.int64]
    mine: slice


class _Parts(NamedTuple):
    """A sample as it is stored, text already read; `None` where it has no such component or nobody asked for it."""

    image: bytes
    mask: bytes | None
    boxes: Annotation | None
    caption: NDArray[np.int64] | None
    sound: bytes | None


class _Reader:
    """Reads and decodes this worker's rows of a step."""

    def __init__(
        self,
        index: Samples,
        batch: int,
        *,
        resolution: int | tuple[int, int],
        channels: Channels,
        device: str,
        threads: int,
        crop: float,
        flip: bool,
        seed: int,
        colour: float = 0.0,
        on_damage: OnDamage = "stop",
        components: tuple[str, ...] = USUAL,
        boxes: int = BOXES,
        tokens: int = TOKENS,
        sound: Sound | None = None,
    ) -> None:
        self.components, self.boxes, self.tokens, self.colour = components, boxes, tokens, colour
        self.index, self.crop, self.flip, self.seed, self.on_damage = index, crop, flip, seed, on_damage
        self.decoder = Decoder(
            resolution, channels, threads, device, batch, masks="mask" in components and bool(index.present["mask"].any())
        )
        self.sounds = SoundDecoder(sound or Sound(), threads, batch) if "sound" in components else None
        self._suspects: set[int] = set()  # samples that were damaged in some window: from then on looked at alone first

    @cached_property
    def _pattern(self) -> NDArray[np.uint8]:
        """`[N]`: which components a sample has, a bit each."""
        return np.packbits(np.stack([self.index.present[c] for c in COMPONENTS], 1), axis=1)[:, 0]

    def read(self, step: _Step) -> tuple[Batch, Damage]:
        """This worker's part of the step, decoded, and the samples that had to be replaced.

        Raises:
            DamagedSample: the first one, with `on_damage="stop"`.
            DataError: a shard cannot be read, or there is nothing to replace a damaged sample by.
        """
        index, position, sample = self.index, step.position[step.mine], step.sample[step.mine].copy()
        replaced: Damage = []
        files: list[_Parts] = []
        for row in range(len(sample)):
            found = self._files(sample[row]) if not self._suspects else self._looked_at(sample[row], position[row])
            files.append(self._replacement(sample, row, position, found, replaced) if isinstance(found, DamagedSample) else found)
        while True:
            wrong, image, mask, sound = self._decode(files, sample, position)
            if not wrong:
                break
            for row, damage in wrong.items():
                self._suspects.add(int(sample[row]))
                files[row] = self._replacement(sample, row, position, damage, replaced)
        batch = Batch(
            position=torch.from_numpy(position.copy()),
            image=jitter(image, self.colour, self.seed, position) if self.colour else image,
            label=torch.from_numpy(np.maximum(index.label[sample], 0)).to(image.device),
            mask=mask,
            present={c: torch.from_numpy(index.present[c][sample]).to(image.device) for c in self.components},
            step_position=torch.from_numpy(step.position),
            step_present={c: torch.from_numpy(index.present[c][step.sample]) for c in self.components},
            sound=None if sound is None else sound.to(image.device),
        )
        if {"boxes", "caption"} & set(self.components):
            self._add_text(batch, files, self._window(sample, position))
        return batch, sorted(replaced, key=itemgetter(0))

    def _window(self, sample: NDArray[np.int64], position: NDArray[np.int64]) -> Window:
        width, height = self.index.width[sample], self.index.height[sample]
        return window(width, height, self.crop, self.flip, self.seed, position, self.decoder.size[1] / self.decoder.size[0])

    def _files(self, i: int) -> _Parts | DamagedSample:
        """What is stored of a sample, or what is wrong with it."""
        try:
            return _Parts(self.index.read(i, "image"), self._stored(i, "mask"), *self._text(i), self._stored(i, "sound"))
        except DamagedSample as damage:
            return damage

    def _stored(self, i: int, component: str) -> bytes | None:
        wanted = component in self.components and self.index.present[component][i]
        return self.index.read(i, component) if wanted else None

    def _text(self, i: int) -> tuple[Annotation | None, NDArray[np.int64] | None]:
        """Boxes and caption of a sample."""
        index, kind = self.index, "boxes"
        if "boxes" not in self.components and "caption" not in self.components:
            return None, None
        try:
            data = self._stored(i, "boxes")
            found = None if data is None else annotation(data, int(index.width[i]), int(index.height[i]), index.class_table(i))
            kind, data = "caption", self._stored(i, "caption")
            return found, None if data is None else tokens(data, self.tokens)
        except ValueError as reason:
            raise DamagedSample(kind, index.name(i), f"{kind}: {reason}; {REMEDY}") from None

    def _add_text(self, batch: Batch, files: list[_Parts], view: Window) -> None:
        """Boxes, labels and captions into the batch, where they are asked for."""
        device = batch.image.device
        if "boxes" in self.components:
            stored = [np.zeros((0, 5)) if parts.boxes is None else parts.boxes.boxes for parts in files]
            batch.boxes = torch.from_numpy(in_window(stored, view, self.boxes)).to(device)
            labels = np.zeros((len(files), len(self.index.card.classes)), np.bool_)
            for row, parts in enumerate(files):
                if parts.boxes is not None:
                    labels[row, parts.boxes.labels] = True
            batch.labels = torch.from_numpy(labels).to(device)
        if "caption" in self.components:
            nothing = np.zeros(self.tokens, np.int64)
            captions = [nothing if parts.caption is None else parts.caption for parts in files]
            batch.caption = torch.from_numpy(np.stack(captions)).to(device)

    def _looked_at(self, i: int, position: int) -> _Parts | DamagedSample:
        """The same; a sample that was damaged before is decoded alone first, so that it fails no batch again."""
        files = self._files(i)
        if i not in self._suspects or isinstance(files, DamagedSample):
            return files
        one, at = np.array([i]), np.array([position])
        if damage := self.decoder.alone(files.image, files.mask, self._window(one, at).row(0), self.index.name(i)):
            return damage
        if self.sounds and files.sound is not None and (damage := self.sounds.alone(files.sound, self.index.name(i))):
            return damage
        wrong, *_ = self._decode([files], one, at)
        return wrong.get(0, files)

    def _decode(
        self, files: list[_Parts], sample: NDArray[np.int64], position: NDArray[np.int64]
    ) -> tuple[dict[int, DamagedSample], torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Rows that are damaged and why; where there is none, image, mask and sound of all."""

        def name(row: int) -> str:
            return self.index.name(sample[row])

        images, masks = [parts.image for parts in files], [parts.mask for parts in files]
        try:
            sound = self.sounds.decode([parts.sound for parts in files], name) if self.sounds else None
            image, mask = self.decoder.decode(images, masks, self._window(sample, position), name)
        except DamagedBatch as damaged:
            return damaged.found, torch.empty(0), torch.empty(0), None
        wrong, mask = self._classes(mask, sample)
        return wrong, image, mask, sound

    def _replacement(
        self, sample: NDArray[np.int64], row: int, position: NDArray[np.int64], damage: DamagedSample, replaced: Damage
    ) -> _Parts:
        """Another sample with the same components, for a damaged one: a function of seed, position and attempt alone.

        That every worker computes what the whole step holds from the index stays true, and so do the pixels after a resume.
        """
        if self.on_damage == "stop":
            raise damage
        at = int(position[row])
        tried = sum(p == at for p, _ in replaced)
        alike = np.flatnonzero(self._pattern == self._pattern[sample[row]])
        for attempt in range(tried, ATTEMPTS):
            replaced.append((at, damage))
            random = int(counter.bits(self.seed, f"replacement {attempt}", torch.tensor([at]), 1)) & ((1 << 62) - 1)
            sample[row] = alike[random % len(alike)]
            found = self._looked_at(sample[row], at)
            if not isinstance(found, DamagedSample):
                return found
            damage = found
        raise DataError(
            f"{damage}; {ATTEMPTS} samples with the same components, drawn in its place, are damaged too: "
            f"mend the data set, `mtgen shards validate {self.index.folder}` lists what is wrong"
        )

    def _classes(self, mask: torch.Tensor, sample: NDArray[np.int64]) -> tuple[dict[int, DamagedSample], torch.Tensor]:
        """`[B,H,W]` stored mask values -> rows with values that the card does not name, and mask classes of the card."""
        if not self.decoder.masks:
            return {}, mask
        tables = [self.index.mask_table(i) for i in sample]
        found: Any
        if mask.device.type == "cpu":  # in NumPy: torch would start threads of its own here
            values = mask.numpy()
            found = np.empty_like(values)
            for row, table in enumerate(tables):
                np.take(table, values[row], out=found[row], mode="clip")
            lowest = found.min((1, 2))
        else:
            rows = torch.arange(len(sample), device=mask.device)[:, None, None]
            found = torch.from_numpy(np.stack(tables)).to(mask.device)[rows, mask]
            lowest = found.amin((1, 2)).cpu().numpy()
        known = f"{CARD} names {len(self.index.card.mask_classes)} classes from 0"
        wrong = {
            int(row): DamagedSample(
                "mask", self.index.name(sample[row]), f"mask class {int(mask[row][torch.as_tensor(found[row]) < 0][0])}, {known}; {REMEDY}"
            )
            for row in np.flatnonzero(lowest < 0)
        }
        return wrong, torch.as_tensor(found)


class Loader:
    """This worker's part of every global batch, from `position` on and without end; decoding runs ahead in one thread.

    Args:
        index: the split to read.
        batch_size: samples of a global batch; a multiple of `world`.
        rank, world: this worker's number and how many there are; it reads rows `[rank*b, (rank+1)*b)`, `b = batch_size / world`.
        resolution, channels: of the images that come out: a square's side or (height, width), and "rgb" or "grey".
        seed: of the order and the crops.
        position: samples that all workers together have consumed since the start of the run.
        crop, flip: see `mtgen.data.geometry.window`.
        colour: see `mtgen.data.colour.jitter`; 0 for none.
        threads: that DALI decodes with.
        device: "cpu", or "cuda" to decode on the GPU.
        prefetch: batches that are decoded ahead.
        order: which sample stands at a position; default: a permutation of the whole split for every epoch.
        components: what is read besides the image: "class", "mask", "boxes", "caption", "sound".
        boxes, tokens: how many boxes of an image, and tokens of a caption, are kept at most.
        sound: what sounds are turned into; default: `Sound()`.
        on_damage: "stop" raises `DamagedSample`; "skip" puts another sample with the same components in its place.

    Attributes:
        damaged: positions of the batches handed out whose sample was damaged and replaced, and what was wrong with it.
        waited: seconds that the consumer has waited for data so far.
        position: where the next batch begins that is handed out.
    """

    def __init__(
        self,
        index: Samples,
        *,
        batch_size: int,
        rank: int,
        world: int,
        resolution: int | tuple[int, int],
        channels: Channels,
        seed: int,
        position: int = 0,
        crop: float = 1.0,
        flip: bool = False,
        colour: float = 0.0,
        threads: int = 1,
        device: str = "cpu",
        prefetch: int = 2,
        order: Policy | None = None,
        on_damage: OnDamage = "stop",
        components: tuple[str, ...] = USUAL,
        boxes: int = BOXES,
        tokens: int = TOKENS,
        sound: Sound | None = None,
    ) -> None:
        if batch_size % world or not 0 <= rank < world:
            raise ValueError(f"worker {rank} of {world} cannot have an equal part of {batch_size} samples")
        self.waited, self.position, self.batch_size = 0.0, position, batch_size
        share = batch_size // world
        policy: Policy = order or Order(len(index), seed)
        mine = slice(rank * share, (rank + 1) * share)

        def steps() -> Iterator[_Step]:
            together = max(AHEAD // batch_size, 1) * batch_size
            for begin in count(position, together):
                at = np.arange(begin, begin + together, dtype=np.int64)
                sample = policy.sample(at)
                later = policy.sample(at + policy.reach) if index.remote else sample
                for part in range(0, together, batch_size):
                    step = slice(part, part + batch_size)
                    index.ahead(sample[step][mine])
                    index.ahead(later[step][mine])
                    yield _Step(at[step].copy(), sample[step], mine)

        reader = _Reader(
            index,
            share,
            resolution=resolution,
            channels=channels,
            device=device,
            threads=threads,
            crop=crop,
            flip=flip,
            seed=seed,
            colour=colour,
            on_damage=on_damage,
            components=components,
            boxes=boxes,
            tokens=tokens,
            sound=sound,
        )
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
        sounds = self._reader.sounds
        return self._reader.decoder.rebuilds + (sounds.rebuilds if sounds else 0)

    def close(self) -> None:
        """Stop reading ahead and end the thread."""
        self._ahead.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def once(
    index: Samples,
    *,
    batch_size: int,
    resolution: int | tuple[int, int],
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
        yield from (batch for batch, _ in ahead)
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


def _work(reader: _Reader, steps: Iterator[_Step], ready: _Queue, stop: threading.Event) -> None:
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
