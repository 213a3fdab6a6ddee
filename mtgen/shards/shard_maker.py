"""Making the shards of a data set, one by one, in one process or several."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import webdataset

from mtgen.errors import DataError
from mtgen.schema import DatasetCard
from mtgen.shards.split_writer import TAR_OPTIONS
from mtgen.shards.summary import Tally
from mtgen.shards.write import Draft, encoded

if TYPE_CHECKING:
    from mtgen.shards.make import Recipe

MAX_IN_PROCESS_SAMPLES = 2_000
"""Smaller data sets are made in this process: that is faster than starting other processes."""


@dataclass(frozen=True)
class Shard:
    """One shard to make: samples `first` to `last` (exclusive) of a split."""

    split: str
    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True)
class ShardResult:
    """The result of making a shard.

    Attributes:
        keys: keys of its samples in order; empty for samples with problems.
        problems: one line per sample that cannot be stored.
        tally: counts over its samples.
    """

    keys: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    def to_json(self) -> str:
        """The result as JSON, which an interrupted run leaves beside the shard."""
        return json.dumps({"keys": self.keys, "problems": self.problems, "tally": self.tally.to_json()})

    @classmethod
    def of_json(cls, text: str) -> "ShardResult":
        """The result of `to_json`."""
        values = json.loads(text)
        return cls(values["keys"], values["problems"], Tally.of_json(values["tally"]))


def plan(splits: dict[str, int], size: int) -> list[Shard]:
    """The shards of at most `size` samples for splits of some numbers of samples."""
    return [
        Shard(split, n, i, min(i + size, count))
        for split, count in splits.items()
        for n, i in enumerate(range(0, count, size))
    ]


class ShardMaker:
    """Makes shards in one process; it is sent to the process once, with the recipe.

    Args:
        draft: where shards are written; `None`: samples are made and checked, and not stored.
        skip_bad: keep a shard although some of its samples cannot be stored.
    """

    def __init__(self, recipe: "Recipe", card: DatasetCard, draft: Draft | None, skip_bad: bool = False) -> None:
        self.recipe = recipe
        self.card = card
        self.draft = draft
        self.skip_bad = skip_bad

    def __call__(self, shard: Shard) -> ShardResult:
        """Make a shard unless an interrupted run has made it; tries all samples, to report all problems at once."""
        if self.draft is None:
            return self._make_samples(shard, None)
        path = self.draft.path / shard.name
        note = path.with_suffix(".json")
        with self.draft.disk():
            if path.is_file() and note.is_file():
                return ShardResult.of_json(note.read_text(encoding="utf-8"))
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                result = self._make_samples(shard, file)
                file.flush()
                os.fsync(file.fileno())  # a name without .part promises that the bytes survive a power failure
            if self.skip_bad or not result.problems:
                note.write_text(result.to_json(), encoding="utf-8")
                part.rename(path)
            return result

    def _make_samples(self, shard: Shard, file: IO[bytes] | None) -> ShardResult:
        result = ShardResult()
        tar = None if file is None else webdataset.TarWriter(file, **TAR_OPTIONS)
        where = "the sample" if self.draft is None else f"{self.draft.folder}, sample"
        for number in range(shard.first, shard.last):
            try:
                sample = self.recipe.make(shard.split, number)
                default = f"{where} {sample.key!r} of {shard.split}"
                content = encoded(self.recipe.origin(shard.split, number) or default, sample, self.card)
            except DataError as error:
                result.problems.append(str(error))
                result.keys.append("")
            else:
                result.tally.add(sample)
                result.keys.append(sample.key)
                if tar is not None:
                    tar.write(content)
        if tar is not None:
            tar.close()
        return result


_shard_maker: ShardMaker
"""The shard maker of a worker process."""


def _init_worker(shard_maker: ShardMaker) -> None:
    global _shard_maker
    _shard_maker = shard_maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C


def _make_shard(shard: Shard) -> ShardResult:
    return _shard_maker(shard)


def make_shards(shard_maker: ShardMaker, shards: list[Shard], processes: int | None) -> Iterator[ShardResult]:
    """Make all shards; yields their results in order."""
    if processes is None:
        large = sum(shard.last - shard.first for shard in shards) > MAX_IN_PROCESS_SAMPLES
        processes = min(len(os.sched_getaffinity(0)), len(shards)) if large else 1
    if processes == 1:
        yield from map(shard_maker, shards)
        return
    context, earlier = multiprocessing.get_context("forkserver"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, context, _init_worker, (shard_maker,)) as pool:
        try:
            yield from pool.map(_make_shard, shards)
        except BaseException:  # do not wait for unfinished shards
            for process in set(multiprocessing.active_children()) - earlier:
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
