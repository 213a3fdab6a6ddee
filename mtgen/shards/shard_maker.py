"""Making the samples of a data set in one process or several, and joining them to shards.

A process makes a range of consecutive samples at a time, a fragment of a shard. Consecutive fragments are joined until
a shard is full, so that the shards do not depend on the number of processes or on interruptions.
"""

import base64
import json
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtgen.data.key_hashes import key_hashes
from mtgen.errors import DataError
from mtgen.schema import DatasetCard
from mtgen.shards.draft import Draft, shard_name
from mtgen.shards.fragments import FragmentWriter, Piece, join_pieces
from mtgen.shards.recipe import Recipe
from mtgen.shards.split_writer import ShardSize
from mtgen.shards.summary import Tally
from mtgen.shards.write import encoded
from mtgen.utils.executors import bounded_map, process_pool

MAX_IN_PROCESS_SAMPLES = 2_000
"""Smaller data sets are made in this process: that is faster than starting other processes."""

RANGES_AHEAD = 4
"""Ranges per process that are made or waiting at the same time, so that fragments do not fill the disk."""


@dataclass(frozen=True)
class SampleRange:
    """Samples that are made at once: `first` to `last` (exclusive) of a split."""

    split: str
    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.split}-{self.number:06d}"


@dataclass(frozen=True)
class RangeResult:
    """The result of making a range of samples.

    Attributes:
        hashes: `[N]` hashes of the keys of all its samples, in order; unique for samples with problems.
        bytes: size of its fragment.
        problems: one line per sample that cannot be stored.
        tally: counts over its samples.
    """

    hashes: NDArray[np.uint64]
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    def to_json(self) -> str:
        """The result as JSON, which an interrupted run leaves."""
        hashes = base64.b64encode(self.hashes.tobytes()).decode()
        values = {"hashes": hashes, "bytes": self.bytes, "problems": self.problems, "tally": self.tally.to_json()}
        return json.dumps(values)

    @classmethod
    def of_json(cls, text: str) -> "RangeResult":
        """The result of `to_json`."""
        values = json.loads(text)
        hashes = np.frombuffer(base64.b64decode(values["hashes"]), np.uint64)
        return cls(hashes, values["bytes"], values["problems"], Tally.of_json(values["tally"]))


def plan_ranges(splits: dict[str, int], size: int) -> list[SampleRange]:
    """The ranges of at most `size` samples for splits of some numbers of samples."""
    return [
        SampleRange(split, n, i, min(i + size, count))
        for split, count in splits.items()
        for n, i in enumerate(range(0, count, size))
    ]


class RangeMaker:
    """Makes ranges of samples in one process; it is sent to the process once, with the recipe.

    Args:
        draft: where they are written; `None`: samples are made and checked, and not stored.
        skip_bad: keep a range although some of its samples cannot be stored.
    """

    def __init__(self, recipe: Recipe, card: DatasetCard, draft: Draft | None, skip_bad: bool = False) -> None:
        self.recipe = recipe
        self.card = card
        self.draft = draft
        self.skip_bad = skip_bad

    def __call__(self, samples: SampleRange) -> RangeResult:
        """Make a range unless an interrupted run has made it; tries all samples, to report all problems at once."""
        if self.draft is None:
            return self._make(samples, None)
        fragment = fragment_path(self.draft, samples)
        note = fragment.with_suffix(".json")
        with self.draft.disk():
            if note.is_file():  # its fragment is complete, or its shard is
                return RangeResult.of_json(note.read_text(encoding="utf-8"))
            part = fragment.with_suffix(".part")
            result = self._make(samples, FragmentWriter(part))
            if self.skip_bad or not result.problems:
                if result.bytes:
                    part.rename(fragment)
                part = note.with_suffix(".note.part")
                part.write_text(result.to_json(), encoding="utf-8")
                part.rename(note)
            return result

    def _make(self, samples: SampleRange, writer: FragmentWriter | None) -> RangeResult:
        keys, problems, tally, size = [], [], Tally(), 0
        where = "the sample" if self.draft is None else f"{self.draft.location}, sample"
        for number in range(samples.first, samples.last):
            try:
                sample = self.recipe.make(samples.split, number)
                default = f"{where} {sample.key!r} of {samples.split}"
                content = encoded(self.recipe.origin(samples.split, number) or default, sample, self.card)
            except DataError as error:
                problems.append(str(error))
                keys.append(f"{samples.split}/{number}")  # which is no possible key
            else:
                tally.add(sample)
                keys.append(content.pop("__key__"))
                if writer is not None:
                    writer.write(keys[-1], content)
        if writer is not None:
            ends = writer.close(durable=True).ends
            size = int(ends[-1]) if len(ends) else 0
        return RangeResult(key_hashes(keys), size, problems, tally)


def fragment_path(draft: Draft, samples: SampleRange) -> Path:
    """The file of a range's samples until they are in a shard."""
    return draft.path / f"{samples.name}.fragment"


_range_maker: RangeMaker
"""The range maker of a worker process."""


def _init_worker(range_maker: RangeMaker) -> None:
    global _range_maker
    _range_maker = range_maker


def _make_range(samples: SampleRange) -> RangeResult:
    return _range_maker(samples)


def make_ranges(
    maker: RangeMaker, ranges: list[SampleRange], processes: int | None, joiner: "ShardJoiner | None" = None
) -> Iterator[RangeResult]:
    """Make all ranges, and their shards by `joiner`; yields the results of the ranges in order."""
    if processes is None:
        large = sum(samples.last - samples.first for samples in ranges) > MAX_IN_PROCESS_SAMPLES
        processes = min(len(os.sched_getaffinity(0)), len(ranges)) if large else 1
    with process_pool(processes, _init_worker, (maker,)) as pool:
        results = bounded_map(pool, _make_range, ranges, RANGES_AHEAD * processes if processes > 1 else 1)
        for samples, result in zip(ranges, results, strict=True):
            if joiner is not None and (maker.skip_bad or not result.problems):
                joiner.add(pool, processes, samples, result)
            yield result
        if joiner is not None:
            joiner.finish(pool)


class ShardJoiner:
    """Joins the fragments of consecutive ranges to shards.

    Attributes:
        counts: split -> number of its shards so far.
    """

    def __init__(self, draft: Draft, full: ShardSize) -> None:
        self.counts: Counter[str] = Counter()
        self._draft = draft
        self._full = full
        self._ranges: list[SampleRange] = []
        self._bytes = 0
        self._at_work: deque[Future[None]] = deque()

    def add(self, pool: Executor, processes: int, samples: SampleRange, result: RangeResult) -> None:
        """Add the next range; joins the shard that it completes, and waits while too many are at work."""
        if self._ranges and self._ranges[0].split != samples.split:
            self._join(pool)
        if result.bytes:
            self._ranges.append(samples)
            self._bytes += result.bytes
            if self._bytes >= self._full.bytes:
                self._join(pool)
        while len(self._at_work) > processes:
            self._at_work.popleft().result()

    def finish(self, pool: Executor) -> None:
        """Join the last shard and wait for all."""
        self._join(pool)
        while self._at_work:
            self._at_work.popleft().result()

    def _join(self, pool: Executor) -> None:
        if self._ranges:
            split = self._ranges[0].split
            name = shard_name(split, self.counts[split])
            fragments = [fragment_path(self._draft, samples) for samples in self._ranges]
            self._at_work.append(pool.submit(_join_fragments, self._draft, name, fragments))
            self.counts[split] += 1
            self._ranges, self._bytes = [], 0


def _join_fragments(draft: Draft, name: str, fragments: list[Path]) -> None:
    """Make a shard of whole fragments, and remove these."""
    with draft.disk():
        if not draft.is_stored(name):
            join_pieces(draft, name, [Piece(path, 0, path.stat().st_size) for path in fragments])
        for path in fragments:
            path.unlink(missing_ok=True)
