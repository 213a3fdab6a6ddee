"""The index of a data set: one row per sample, stored in columns: where its components are and what is in them."""

import copy
import hashlib
import json
import os
import zlib
from bisect import bisect_right
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtgen.config.legacy import card_for_fingerprint
from mtgen.data.columns import AllRowsBut, ChosenRows, Column, SelectedColumn, Selection
from mtgen.data.dataset_card import CARD_FILE, card_of, read_card_text
from mtgen.data.index_build import MAX_PROBLEMS_SHOWN, IndexProgress, OnDamage, raise_problems
from mtgen.data.index_file import IndexFile, format_counts
from mtgen.data.index_store import find_index, mark_stale
from mtgen.data.index_table import STORED_PARTS
from mtgen.data.orders.permutation import SampleOrder
from mtgen.data.orders.policy import OrderPolicy
from mtgen.data.shard_files import DEFAULT_CACHE_GB, Shards
from mtgen.errors import ChangedShard, DamagedSample, DataError
from mtgen.registry import suggest
from mtgen.schema import COMPONENTS, IGNORE_INDEX, DatasetCard
from mtgen.storage.remote_store import Version
from mtgen.storage.shard_cache import CachedFile
from mtgen.storage.source import open_source
from mtgen.utils.shell import shell_command

MAX_OPEN_SHARDS = 256
"""Shards that are open at the same time."""

MAX_OPEN_CACHED_SHARDS = 32
"""The same limit for shards in the cache: the space of an evicted shard is freed only when it is closed."""


class _ShardTable:
    """The shards of a split by number, as open files."""

    def __init__(self, shards: Shards, table: pa.Table) -> None:
        self.files = shards
        self.table = table.combine_chunks()

    def name(self, number: int) -> str:
        """File name of a shard."""
        return str(self.table["name"][number].as_py())

    def about(self, number: int) -> tuple[str, Version, str]:
        """Name, version and SHA-256 of a shard."""
        size, tag, sha256 = (self.table[column][number].as_py() for column in ("size", "tag", "sha256"))
        return self.name(number), Version(size, tag or ""), sha256.hex()

    def open(self, number: int) -> CachedFile:
        """Open a shard; see `Shards.open`."""
        return self.files.open(*self.about(number))


class Index:
    """One split: where every component is stored, and what is known without decoding. Safe to use after a fork.

    Its columns are mapped into memory: all processes of a node share one copy, and only rows that are used are read.

    Attributes:
        card: the data set's `dataset.json`.
        folder, split: the arguments of `open_index`.
        label: `[N]` int64 class number, -1 where missing.
        width, height: `[N]` int32, pixels of the image as displayed.
        present: component ("class", "mask", "boxes", "tags", "caption", "sound") -> `[N]` bool.
        sizes: `[S]` int64 number of samples of each shard.
        problems: what is wrong with the split; the samples concerned are left out.
        remote: whether its shards have to be downloaded.
        domains: names of the data sets that the samples come from: here one, the card's name.
        whole: number of samples of the split; more than `len(self)` in a `subset`.
        sizes: `[S]` int64, number of samples of each shard.
    """

    def __init__(
        self, shards: Shards, split: str, card: DatasetCard, file: IndexFile, pointer: Path | None = None
    ) -> None:
        """Args: `pointer` names the index in the cache, and is removed when it turns out to be out of date."""
        self.folder = str(shards.source)
        self.split = split
        self.card = card
        self.remote = shards.source.remote
        self.domains = [card.name]
        self.problems = [*file.shard_problems(split), *file.problems.get(split, [])]
        self._shards = _ShardTable(shards, file.shards(split))
        self._set_sizes(self._shards.table["samples"].to_numpy())
        self._samples = file.samples(split)
        columns = {
            name: self._samples.column(name).to_numpy()
            for name in self._samples.schema.names
            if name not in ("key", "format")
        }
        self.label: Column = columns["label"]
        self.width: Column = columns["width"]
        self.height: Column = columns["height"]
        absent = np.broadcast_to(np.False_, len(self.label))
        self.present: dict[str, Column] = {
            c: columns[f"{c}_present"].view(np.bool_) if f"{c}_present" in columns else absent for c in COMPONENTS
        }
        self._locations = {
            part: [columns[f"{part}_{column}"] for column in ("offset", "size", "crc")]
            for part in STORED_PARTS
            if f"{part}_offset" in columns
        }
        self._open = lru_cache(maxsize=MAX_OPEN_CACHED_SHARDS if self.remote else MAX_OPEN_SHARDS)(self._shards.open)
        self._requested: list[int] = []  # shards that were requested last
        self._pointer = pointer
        self._selection: Selection | None = None
        self.whole = len(self.label)

    def subset(self, rows: NDArray[np.int64]) -> "Index":
        """Some samples of the split, in its order; the fingerprint stays that of the whole split.

        Args:
            rows: `[n]` their numbers, ascending.
        """
        return self._select(ChosenRows(rows))

    def without(self, rows: NDArray[np.int64]) -> "Index":
        """All samples of the split but a few; takes no memory for the others.

        Args:
            rows: `[n]` their numbers, ascending.
        """
        return self._select(AllRowsBut(rows, len(self)))

    def _select(self, selection: Selection) -> "Index":
        if self._selection is not None:
            raise ValueError("a part of a split has no parts")
        part = copy.copy(self)
        part._selection = selection
        part._set_sizes(np.diff(selection.before(np.concatenate([[0], self._ends]))))
        part.label, part.width, part.height = (
            SelectedColumn(column, selection) for column in (self.label, self.width, self.height)
        )
        part.present = {component: SelectedColumn(present, selection) for component, present in self.present.items()}
        return part

    def _row(self, i: int) -> int:
        """The row of sample `i` in the table of samples."""
        return int(i) if self._selection is None else self._selection.row(int(i))

    def _set_sizes(self, sizes: NDArray[np.int64]) -> None:
        """Set the number of samples of each shard."""
        self.sizes = sizes
        self._ends = np.cumsum(sizes)
        self._ends_by_number = memoryview(self._ends)  # type: ignore[arg-type]

    @property
    def shards(self) -> list[str]:
        """File names of the split's shards."""
        return self._shards.table["name"].to_pylist()

    @property
    def num_bytes(self) -> int:
        """Size of the split's shards, bytes."""
        return int(self._shards.table["size"].to_numpy().sum())

    def __len__(self) -> int:
        return len(self.label)

    @property
    def formats(self) -> dict[str, int]:
        """Format of the stored images ("jpeg", "png", "webp") -> how many samples have it."""
        column = self._samples.column("format").to_numpy()
        return format_counts(column if self._selection is None else SelectedColumn(column, self._selection))

    def key(self, i: int) -> str:
        """The sample's key, as in WebDataset."""
        return str(self._samples.column("key")[self._row(i)].as_py())

    def _shard_of(self, i: int) -> int:
        """Number of the shard that holds the sample."""
        return bisect_right(self._ends_by_number, int(i))

    def shard(self, i: int) -> str:
        """File name of the shard that holds the sample."""
        return self._shards.name(self._shard_of(i))

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
        """Read the bytes of a component ("image", "class", "mask", "boxes", "tags", "caption", "sound") of sample `i`.

        Raises:
            KeyError: the sample does not have the component.
            DamagedSample: the bytes of a local shard differ from those that were indexed.
            DataError: the shard is missing or cannot be read.
        """
        if component != "image" and not self.present[component][i]:
            raise KeyError(f"{self.key(i)} has no {component}")
        row = self._row(i)
        offset, size, crc = (column.item(row) for column in self._locations[component])
        try:
            # the local reference keeps the file open: it closes with its last reference
            file = self._open(self._shard_of(i))
            data = os.pread(file.descriptor, size, offset)
        except ChangedShard:
            if self._pointer is not None:
                mark_stale(self._pointer)
            raise
        except OSError as error:
            raise DataError(f"{self.name(i)}: cannot be read ({error.strerror})") from None
        if not self.remote and zlib.crc32(data) != crc:  # shards in the cache were checked when they were fetched
            what = f"{component} differs from what was indexed: the shard was changed while in use, or is damaged"
            raise DamagedSample("checksum", self.name(i), f"{what}; run `mtgen shards validate`, then start again")
        return data

    def prefetch(self, sample: NDArray[np.int64]) -> None:
        """Start downloading the shards of samples that will be read soon, in the background; no-op for local data."""
        if not self.remote:
            return
        new = []
        for number in dict.fromkeys(np.searchsorted(self._ends, sample, side="right").tolist()):
            if number not in self._requested:
                self._requested.append(number)
                del self._requested[:-MAX_OPEN_SHARDS]
                new.append(self._shards.about(number))
        self._shards.files.fetch_ahead(new)

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
        for own in self._shards.table["digest"].to_pylist():
            digest.update(own)
        return digest.hexdigest()


def open_index(
    folder: str | Path,
    split: str,
    progress: IndexProgress | None = None,
    *,
    on_damage: OnDamage = "stop",
    damage_limit: float = 0.01,
    cache: float = DEFAULT_CACHE_GB,
    patience: float | None = None,
    card_text: bytes | None = None,
) -> Index:
    """Open the index of a split: the one that `dataset.json` names, else that of the cache, which is built if missing.

    Args:
        folder: a folder or a URL.
        on_damage: "stop": any problem of the split is an error; "skip": samples with problems are left out, see
            `Index.problems`.
        damage_limit: fraction of the split's samples that may be left out.
        cache: GB of local disk that remote shards may take.
        patience: seconds to keep trying while a store does not answer; default: a minute.
        card_text: the content of `dataset.json`, if another worker has read it.

    Raises:
        DataError: an unknown split, too much damage, an index that is not that of the data, or anything that
            `find_index` raises.
    """
    source = open_source(folder, patience)
    card, digest = card_of(str(source), card_text or read_card_text(source))
    if split not in card.splits:
        raise DataError(
            f"{source}/{CARD_FILE}: no split {split!r}; {suggest(split, list(card.splits))}; "
            f"{_instead(split, list(card.splits))}`mtgen shards split` makes new ones"
        )
    file, pointer = find_index(source, card, digest, split, progress, cache)
    index = Index(Shards(source, cache), split, card, file, pointer)
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
