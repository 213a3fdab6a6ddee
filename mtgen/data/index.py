"""The index of a data set: one row per sample, stored in columns: where its components are and what is in them."""

import copy
import hashlib
import json
import os
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtgen.config.legacy import card_for_fingerprint
from mtgen.data.dataset_card import CARD_FILE, read_card
from mtgen.data.index_build import (
    DEFAULT_CACHE_GB,
    MAX_PARALLEL_DOWNLOADS,
    MAX_PROBLEMS_SHOWN,
    IndexProgress,
    OnDamage,
    Shards,
    build_index,
    dataset_index_path,
    index_state,
    raise_problems,
    read_index,
    user_index_path,
)
from mtgen.data.index_table import STORED_PARTS
from mtgen.data.orders.permutation import SampleOrder
from mtgen.data.orders.policy import OrderPolicy
from mtgen.data.shard_scan import Problem
from mtgen.errors import DamagedSample, DataError
from mtgen.registry import suggest
from mtgen.schema import COMPONENTS, IGNORE_INDEX, DatasetCard
from mtgen.storage.source import open_source
from mtgen.utils.shell import shell_command

MAX_OPEN_SHARDS = 256
"""Shards that are open at the same time."""

MAX_OPEN_CACHED_SHARDS = 32
"""The same limit for shards in the cache: the space of an evicted shard is freed only when it is closed."""


@dataclass(frozen=True)
class _Prefetcher:
    """Threads that download shards ahead of their use.

    Attributes:
        process: id of the process that started the threads.
        requested: numbers of the shards requested last.
    """

    process: int
    pool: ThreadPoolExecutor
    requested: list[int]


class Index:
    """One split: where every component is stored, and what is known without decoding. Safe to use after a fork.

    Attributes:
        card: the data set's `dataset.json`.
        folder, split: the arguments of `open_index`.
        label: `[N]` int64 class number, -1 where missing.
        width, height: `[N]` int32, pixels of the image as displayed.
        present: component ("class", "mask", "boxes", "caption", "sound") -> `[N]` bool.
        problems: what is wrong with the split; the samples concerned are left out.
        remote: whether its shards have to be downloaded.
        domains: names of the data sets that the samples come from: here one, the card's name.
        whole: number of samples of the split; more than `len(self)` in a `subset`.
        sizes: `[S]` int64, number of samples of each shard.
    """

    def __init__(
        self, shards: Shards, split: str, card: DatasetCard, state: dict[str, Any], file: pq.ParquetFile
    ) -> None:
        self.folder = str(shards.source)
        self.split = split
        self.card = card
        self.remote = shards.source.remote
        self.domains = [card.name]
        numbers = [number for number, shard in enumerate(state["shards"]) if shard["split"] == split]
        self._state = [state["shards"][number] for number in numbers]
        self.problems = [Problem(*found) for shard in self._state for found in shard["problems"]]
        self.problems += [Problem(*found) for found in state["problems"].get(split, [])]
        self.sizes = np.array([shard["rows"] for shard in self._state], dtype=np.int64)
        self._file = file
        self._groups = state["groups"][split]
        stored = [name for name in file.schema_arrow.names if name.endswith(("_offset", "_size", "_crc"))]
        columns: dict[str, NDArray[Any]] = {
            name: file.read_row_groups(self._groups, columns=[name])[name].to_numpy()
            for name in ("label", "width", "height", *stored)
        }
        self._shard = np.repeat(np.arange(len(numbers), dtype=np.int32), self.sizes)
        self.label: NDArray[np.int64] = columns["label"]
        self.width: NDArray[np.int32] = columns["width"]
        self.height: NDArray[np.int32] = columns["height"]
        absent = np.zeros(len(self.label), dtype=np.bool_)
        self.present: dict[str, NDArray[np.bool_]] = {
            c: columns[f"{c}_offset"] >= 0 if f"{c}_offset" in columns else absent for c in COMPONENTS
        }
        self._locations = {
            part: [columns[f"{part}_{column}"] for column in ("offset", "size", "crc")]
            for part in STORED_PARTS
            if f"{part}_offset" in columns
        }
        self._fetch = shards.open
        self._open = lru_cache(maxsize=MAX_OPEN_CACHED_SHARDS if self.remote else MAX_OPEN_SHARDS)(shards.open)
        self._prefetcher: _Prefetcher | None = None
        self._rows: NDArray[np.int64] | None = None  # of a subset
        self.whole = len(self.label)

    def subset(self, rows: NDArray[np.int64]) -> "Index":
        """Some samples of the split, in its order; the fingerprint stays that of the whole split.

        Args:
            rows: `[n]` their numbers, ascending.
        """
        part = copy.copy(self)
        part._rows = rows if self._rows is None else self._rows[rows]
        part._shard = self._shard[rows]
        part.sizes = np.bincount(part._shard, minlength=len(self.sizes)).astype(np.int64)
        part.label, part.width, part.height = self.label[rows], self.width[rows], self.height[rows]
        part.present = {component: present[rows] for component, present in self.present.items()}
        part._locations = {name: [column[rows] for column in columns] for name, columns in self._locations.items()}
        return part

    @property
    def shards(self) -> list[str]:
        """File names of the split's shards."""
        return [shard["name"] for shard in self._state]

    @property
    def num_bytes(self) -> int:
        """Size of the split's shards, bytes."""
        return sum(shard["size"] for shard in self._state)

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def _keys(self) -> pa.ChunkedArray:
        """Keys of the whole split; read on first use, because only messages need them."""
        return self._file.read_row_groups(self._groups, columns=["key"])["key"]

    @property
    def formats(self) -> dict[str, int]:
        """Format of the stored images ("jpeg", "png", "webp") -> how many samples have it."""
        column = self._file.read_row_groups(self._groups, columns=["format"])["format"]
        column = column if self._rows is None else column.take(self._rows)
        return {str(row["values"]): row["counts"] for row in pc.value_counts(column).to_pylist()}

    def key(self, i: int) -> str:
        """The sample's key, as in WebDataset."""
        return str(self._keys[int(i if self._rows is None else self._rows[i])].as_py())

    def shard(self, i: int) -> str:
        """File name of the shard that holds the sample."""
        return str(self._state[self._shard[i]]["name"])

    def name(self, i: int) -> str:
        """The sample's shard and key, for errors."""
        return f"{self.folder}/{self.shard(i)}: {self.key(i)}"

    def mask_table(self, i: int) -> NDArray[np.int64]:
        """`[256]`: mask value as stored in sample `i` -> mask class of `card`; 255: unknown; -1: not in the card."""
        return _mask_table(len(self.card.mask_classes), self.card.ignore_index)

    def class_table(self, i: int) -> NDArray[np.int64]:
        """`[K]`: class number as stored in sample `i` -> class number of `card`."""
        return np.arange(len(self.card.classes))

    def read(self, i: int, component: str) -> bytes:
        """Read the bytes of a component ("image", "class", "mask", "boxes", "caption", "sound") of sample `i`.

        Raises:
            KeyError: the sample does not have the component.
            DamagedSample: the bytes differ from those that were indexed.
            DataError: the shard is missing or cannot be read.
        """
        if component != "image" and not self.present[component][i]:
            raise KeyError(f"{self.key(i)} has no {component}")
        offset, size, crc = (column.item(i) for column in self._locations[component])
        shard = self._state[self._shard.item(i)]
        try:
            # the local reference keeps the file open: it closes with its last reference
            file = self._open(shard["name"], shard["size"], shard["tag"])
            data = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{self.name(i)}: cannot be read ({error.strerror})") from None
        if zlib.crc32(data) != crc:
            what = f"{component} differs from what was indexed: the shard was changed while in use, or is damaged"
            raise DamagedSample("checksum", self.name(i), f"{what}; run `mtgen shards validate`, then start again")
        return data

    def prefetch(self, sample: NDArray[np.int64]) -> None:
        """Start downloading the shards of samples that will be read soon, in the background; no-op for local data."""
        if not self.remote:
            return
        if self._prefetcher is None or self._prefetcher.process != os.getpid():  # threads do not survive a fork
            self._prefetcher = _Prefetcher(os.getpid(), ThreadPoolExecutor(MAX_PARALLEL_DOWNLOADS, "mtgen fetch"), [])
        requested = self._prefetcher.requested
        for number in dict.fromkeys(self._shard[sample].tolist()):
            if number not in requested:
                requested.append(number)
                del requested[:-MAX_OPEN_SHARDS]
                shard = self._state[number]
                # its error is not looked at: `read` will raise the same one
                self._prefetcher.pool.submit(self._fetch, shard["name"], shard["size"], shard["tag"])

    def domain(self, sample: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]`: the number of each sample's data set in `domains`."""
        return np.zeros(len(sample), np.int64)

    def order(self, policy: OrderPolicy) -> SampleOrder:
        """The samples in the order of a policy."""
        return policy.one(self.sizes)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over the card and the checksums of every component of the split, shard by shard."""
        card = card_for_fingerprint(self.card.model_dump(mode="json", exclude={"domains", "unused_classes"}))
        digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
        for shard in self._state:
            digest.update(bytes.fromhex(shard["digest"]))
        return digest.hexdigest()


def open_index(
    folder: str | Path,
    split: str,
    progress: IndexProgress | None = None,
    *,
    on_damage: OnDamage = "stop",
    damage_limit: float = 0.01,
    cache: float = DEFAULT_CACHE_GB,
) -> Index:
    """Open the index of a split; if neither the one beside `dataset.json` nor the cached one is up to date, build it.

    Args:
        folder: a folder or a URL.
        on_damage: "stop": any problem of the split is an error; "skip": samples with problems are left out, see
            `Index.problems`.
        damage_limit: fraction of the split's samples that may be left out.
        cache: GB of local disk that remote shards may take.

    Raises:
        DataError: an unknown split, too much damage, or anything that `build_index` raises.
    """
    source = open_source(folder)
    card = read_card(str(source))
    if split not in card.splits:
        raise DataError(
            f"{source}/{CARD_FILE}: no split {split!r}; {suggest(split, list(card.splits))}; "
            f"{_instead(split, list(card.splits))}`mtgen shards split` makes new ones"
        )
    state = index_state(source, card)
    paths = [user_index_path(str(source))]
    if not source.remote:
        paths.insert(0, dataset_index_path(str(source)))
    opened = next((found for path in paths if (found := read_index(path, state)) is not None), None)
    if opened is None:
        built = build_index(str(source), progress=progress, on_damage="skip", cache=cache)
        opened = read_index(built, index_state(source, card))
    if opened is None:
        raise DataError(f"{source}: its shards changed while they were indexed; start again when they are complete")
    index = Index(Shards(source, cache), split, card, *opened)
    if on_damage == "stop":
        raise_problems(str(source), index.problems)
    _check_damage(index, damage_limit)
    return index


def _check_damage(index: Index, limit: float) -> None:
    """Raise `DataError` if more than a fraction `limit` of the split's samples cannot be used, or all of them."""
    claimed = index.card.splits[index.split].samples
    lost = claimed - len(index)
    if not index.problems or (len(index) and lost <= limit * claimed):
        return
    kinds = Counter(problem.kind for problem in index.problems)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    problem = f"{lost:,} of {claimed:,} samples of split {index.split!r} cannot be used ({counts})"
    lines = [
        f"{index.folder}: {problem}, more than damage_limit={limit:g}",
        *(f"{index.folder}/{found}" for found in index.problems[:MAX_PROBLEMS_SHOWN]),
        f"`{shell_command('mtgen shards validate', index.folder)}` lists every problem",
    ]
    raise DataError("\n".join(lines))


@lru_cache(maxsize=64)
def _mask_table(classes: int, ignore: int) -> NDArray[np.int64]:
    table = np.full(256, -1, dtype=np.int64)
    table[:classes] = np.arange(classes)
    table[[ignore, IGNORE_INDEX]] = IGNORE_INDEX
    return table


def _instead(split: str, others: list[str]) -> str:
    """How a configuration takes another split in place of one that does not exist; empty for splits of other names."""
    other = next((name for name in ("val", "test", "train") if name in others), "")
    return f"to take another: data.{split}_split={other}; " if split in ("train", "test") and other else ""
