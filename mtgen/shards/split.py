"""Distributing the samples of a data set to new splits, bytes unchanged."""

import os
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtgen.data.dataset_card import read_card, shard_names
from mtgen.data.key_hashes import DuplicateFinder
from mtgen.data.shard_scan import COMPONENT_BY_SUFFIX, Problem, samples
from mtgen.errors import ConfigError, DataError
from mtgen.schema import DatasetCard, Split
from mtgen.shards.draft import Draft, check_split_name, pattern, shard_name
from mtgen.shards.fragments import Fragment, FragmentWriter, Piece, join_pieces, plan_shards
from mtgen.shards.input_files import unit_hash
from mtgen.shards.open_draft import open_draft
from mtgen.shards.split_writer import ShardSize, keys_among
from mtgen.utils.executors import bounded_map, process_pool
from mtgen.utils.shell import shell_command

MAX_IN_PROCESS_SAMPLES = 20_000
"""Smaller data sets are split in this process: that is faster than starting other processes."""

SHARDS_AHEAD = 4
"""Shards per process that are read or written, or wait for it, at the same time."""


def parse_fractions(assignments: list[str]) -> dict[str, float]:
    """Parse `["train=0.8", "test=0.2"]` -> `{"train": 0.8, "test": 0.2}`.

    Raises:
        ConfigError: a fraction is not positive, or they do not add up to 1.
    """
    fractions: dict[str, float] = {}
    for assignment in assignments:
        name, _, number = assignment.partition("=")
        try:
            fractions[name] = float(number)
        except ValueError:
            raise ConfigError(f"{assignment}: not SPLIT=FRACTION; write for example train=0.9") from None
        if not 0 < fractions[name] <= 1:
            raise ConfigError(f"{assignment}: the fraction has to be above 0 and at most 1")
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise ConfigError(f"{' '.join(assignments)}: the fractions add up to {sum(fractions.values()):g}; make it 1")
    return fractions


def assign_split(seed: int, key: str, fractions: dict[str, float]) -> str:
    """The split of a sample, a function of seed, key and fractions alone."""
    position = unit_hash(seed, key)
    for name, fraction in fractions.items():
        if (position := position - fraction) < 0:
            return name
    return list(fractions)[-1]


def split(
    folder: str | Path,
    out: str | Path,
    fractions: dict[str, float],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    processes: int | None = None,
) -> DatasetCard:
    """Distribute the samples of all splits of `folder` to new splits in `out`, by a seeded hash of their keys.

    Every shard is read by one of several processes; the result does not depend on their number.

    Args:
        fractions: new split -> its fraction of the samples.
        progress: called with (samples done, samples in total).
        out: a folder that does not exist or is empty, or the URL of one in a store.
        overwrite: replace the data set in the folder `out`.
        processes: number of processes; default: one per available CPU, one for small data sets.

    Raises:
        DataError: a shard is damaged, two samples have the same key, or `out` is not empty or cannot be written.
    """
    folder = Path(folder)
    card = read_card(folder)
    for name in fractions:
        check_split_name(folder, name)
    draft = open_draft(out, card, overwrite)
    draft.claim()
    try:
        with draft.disk():
            new = _split(folder, card, draft, fractions, seed, progress, processes)
        draft.finish(new)
    except BrokenProcessPool:
        draft.abandon()
        raise DataError("a process that reads shards was killed (out of memory?); start again") from None
    except BaseException:
        draft.abandon()
        raise
    return new


def _split(
    folder: Path,
    card: DatasetCard,
    draft: Draft,
    fractions: dict[str, float],
    seed: int,
    progress: Callable[[int, int], None] | None,
    processes: int | None,
) -> DatasetCard:
    """Write the shards of the new splits; returns the new card."""
    names = [name for old in card.splits for name in shard_names(folder, card, old)]
    done, total = 0, sum(part.samples for part in card.splits.values())
    if processes is None:
        processes = min(len(os.sched_getaffinity(0)), len(names)) if total > MAX_IN_PROCESS_SAMPLES else 1
    fragments: list[dict[str, Fragment]] = []
    with (
        process_pool(processes) as pool,
        tempfile.TemporaryDirectory(dir=draft.path, prefix="fragments-") as temporary,
    ):
        places = [(name, Path(temporary) / str(number)) for number, name in enumerate(names)]
        distribute = partial(_distribute, folder, fractions, seed)
        for found in bounded_map(pool, distribute, places, SHARDS_AHEAD * processes):
            fragments.append(found)
            done += sum(len(fragment.ends) for fragment in found.values())
            if progress:
                progress(done, total)
        _check_keys(folder, fragments)
        splits = {new: _join_split(pool, processes, draft, new, fragments) for new in fractions}
    splits = {new: part for new, part in splits.items() if part.samples}
    if not splits:
        raise DataError(f"{folder}: has no samples to distribute")
    split_by = {"shares": fractions, "seed": seed}
    extra: dict[str, Any] = (card.model_extra or {}) | {"split_by": split_by}
    kept = card.model_dump(include={"name", "classes", "mask_classes", "ignore_index", "source", "licence"})
    return DatasetCard(**kept, splits=splits, **extra)


def _distribute(folder: Path, fractions: dict[str, float], seed: int, item: tuple[str, Path]) -> dict[str, Fragment]:
    """Read a shard and write one fragment for each new split of its samples.

    Args:
        item: name of the shard, and where to write; the splits' names are appended.
    """
    name, out = item
    writers: dict[str, FragmentWriter] = {}
    for sample in samples(folder / name, others=True):
        if isinstance(sample, Problem):
            raise DataError(
                f"{folder}/{sample}; `{shell_command('mtgen shards validate', folder)}` lists every problem"
            )
        if not COMPONENT_BY_SUFFIX.keys() & {part.suffix for part in sample.parts.values()}:
            others = ", ".join(f".{name}" for name in sample.parts)
            raise DataError(
                f"{folder / name}, sample {sample.key!r}: {others} without an image; remove it or add its image"
            )
        new = assign_split(seed, sample.key, fractions)
        if new not in writers:
            writers[new] = FragmentWriter(out.with_name(f"{out.name}-{new}"))
        writers[new].write(sample.key, {part.suffix: part.data for part in sample.parts.values()})
    return {new: writer.close() for new, writer in writers.items()}


def _join_split(
    pool: Executor, processes: int, draft: Draft, split: str, fragments: list[dict[str, Fragment]]
) -> Split:
    """Join the fragments of a new split to shards."""
    own = [found[split] for found in fragments if split in found]
    shards = [(shard_name(split, n), pieces) for n, pieces in enumerate(plan_shards(own, ShardSize.of(None)))]
    deque(bounded_map(pool, partial(_join, draft), shards, SHARDS_AHEAD * processes), maxlen=0)
    return Split(samples=sum(len(fragment.ends) for fragment in own), shards=pattern(split, len(shards)))


def _join(draft: Draft, shard: tuple[str, list[Piece]]) -> None:
    join_pieces(draft, *shard)


def _check_keys(folder: Path, fragments: list[dict[str, Fragment]]) -> None:
    """Raise `DataError` if two samples have the same key, which is searched for only if two hashes are the same."""
    every = [fragment for found in fragments for fragment in found.values()]
    with DuplicateFinder() as finder:
        for fragment in every:
            finder.add(fragment.hashes)
        hashes, _ = finder.duplicates()
    repeated, seen = set(hashes.tolist()), set[str]()
    suspects = [fragment.path for fragment in every if np.isin(fragment.hashes, hashes).any()] if repeated else []
    for key in keys_among(suspects, repeated):
        if key in seen:
            raise DataError(f"{folder}, sample {key!r}: another sample has the same key; rename one")
        seen.add(key)
