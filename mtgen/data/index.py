"""The index of a data set: one row a sample, in columns; what to read where, and what to expect there."""

import hashlib
import json
import os
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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
    problems_of,
    raise_problems,
    read_index,
    user_index_path,
)
from mtgen.data.index_table import STORED_PARTS
from mtgen.data.sampler import Order, SampleOrder, WindowedOrder
from mtgen.data.shard_scan import Problem
from mtgen.errors import DamagedSample, DataError
from mtgen.registry import suggest
from mtgen.schema import COMPONENTS, IGNORE_INDEX, DatasetCard
from mtgen.storage.source import open_source
from mtgen.utils.shell import shell_command

MAX_OPEN_SHARDS = 256
"""Shards that are held open at once."""

MAX_OPEN_CACHED_SHARDS = 32
"""The same of shards in the cache: the space of one that is thrown away is free when it is closed."""


class Index:
    """One split: where every component lies, and what is known without decoding. Safe to use after a fork.

    Attributes:
        card: the data set's `dataset.json`.
        folder, split: what was opened.
        label: `[N]` int64 class number, -1 where missing.
        width, height: `[N]` int32, pixels of the image as displayed.
        present: component ("class", "mask", "boxes", "caption", "sound") -> `[N]` bool.
        problems: what is wrong with the split; the samples at fault are left out.
        remote: whether its shards have to be fetched.
        domains: names of the data sets that samples are from: the card's, one.
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
        self._columns: dict[str, NDArray[Any]] = {}
        for name in (
            "label",
            "width",
            "height",
            *(n for n in file.schema_arrow.names if n.endswith(("_offset", "_size", "_crc"))),
        ):
            self._columns[name] = file.read_row_groups(self._groups, columns=[name])[name].to_numpy()
        self._shard = np.repeat(np.arange(len(numbers), dtype=np.int32), self.sizes)
        self.label: NDArray[np.int64] = self._columns["label"]
        self.width: NDArray[np.int32] = self._columns["width"]
        self.height: NDArray[np.int32] = self._columns["height"]
        nowhere = np.zeros(len(self.label), dtype=np.bool_)
        self.present: dict[str, NDArray[np.bool_]] = {
            c: self._columns[f"{c}_offset"] >= 0 if f"{c}_offset" in self._columns else nowhere for c in COMPONENTS
        }
        self._places = {
            part: [self._columns[f"{part}_{column}"] for column in ("offset", "size", "crc")]
            for part in STORED_PARTS
            if f"{part}_offset" in self._columns
        }
        self._fetch = shards.open
        self._open = lru_cache(maxsize=MAX_OPEN_CACHED_SHARDS if self.remote else MAX_OPEN_SHARDS)(shards.open)
        self._ahead: tuple[int, ThreadPoolExecutor, list[int]] | None = None

    @property
    def shards(self) -> list[str]:
        """File names of the split's shards."""
        return [shard["name"] for shard in self._state]

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def _keys(self) -> pa.ChunkedArray:
        """Only wanted for messages, so not read at the start."""
        return self._file.read_row_groups(self._groups, columns=["key"])["key"]

    @property
    def formats(self) -> dict[str, int]:
        """Format of the stored images ("jpeg", "png", "webp") -> how many samples have it."""
        column = self._file.read_row_groups(self._groups, columns=["format"])["format"]
        return {str(row["values"]): row["counts"] for row in pc.value_counts(column).to_pylist()}

    def key(self, i: int) -> str:
        """The sample's key, as in WebDataset."""
        return str(self._keys[int(i)].as_py())

    def shard(self, i: int) -> str:
        """File name of the shard that holds the sample."""
        return str(self._state[self._shard[i]]["name"])

    def name(self, i: int) -> str:
        """Where the sample is, for errors: its shard and its key."""
        return f"{self.folder}/{self.shard(i)}: {self.key(i)}"

    def mask_table(self, i: int) -> NDArray[np.int64]:
        """`[256]`: a mask value of sample `i` as stored -> its mask class in `card`; 255: unknown; -1: the card names no such class."""
        return _mask_table(len(self.card.mask_classes), self.card.ignore_index)

    def class_table(self, i: int) -> NDArray[np.int64]:
        """`[K]`: a class number that is stored with sample `i` -> its number in `card`."""
        return np.arange(len(self.card.classes))

    def read(self, i: int, component: str) -> bytes:
        """The bytes of a component ("image", "class", "mask", "boxes", "caption", "sound") of sample `i`.

        Raises:
            KeyError: the sample does not have it.
            DamagedSample: the shard holds other bytes there than when it was indexed.
            DataError: the shard is gone, or cannot be read.
        """
        if component != "image" and not self.present[component][i]:
            raise KeyError(f"{self.key(i)} has no {component}")
        offset, size, crc = (column.item(i) for column in self._places[component])
        shard = self._state[self._shard.item(i)]
        try:
            file = self._open(
                shard["name"], shard["size"], shard["tag"]
            )  # held while it is read: it closes with its last holder
            data = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{self.name(i)}: cannot be read ({error.strerror})") from None
        if zlib.crc32(data) != crc:
            what = f"{component} is not what was indexed; the shard changed while it was in use or is damaged"
            raise DamagedSample("checksum", self.name(i), f"{what}: run `mtgen shards validate`, then start again")
        return data

    def prefetch(self, sample: NDArray[np.int64]) -> None:
        """Begin to fetch the shards of samples that will be read soon, in the background; nothing where the data is local."""
        if not self.remote:
            return
        if self._ahead is None or self._ahead[0] != os.getpid():  # threads do not survive a fork
            self._ahead = os.getpid(), ThreadPoolExecutor(MAX_PARALLEL_DOWNLOADS, "mtgen fetch"), []
        _, pool, asked = self._ahead
        for number in dict.fromkeys(self._shard[sample].tolist()):
            if number not in asked:
                asked.append(number)
                del asked[:-MAX_OPEN_SHARDS]
                shard = self._state[number]
                pool.submit(
                    self._fetch, shard["name"], shard["size"], shard["tag"]
                )  # who reads it meets the same error

    def domain(self, sample: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]`: which of `domains` samples are from."""
        return np.zeros(len(sample), np.int64)

    def order(self, policy: str, window: int, seed: int, purpose: str = "order") -> SampleOrder:
        """Which sample stands at a position; "auto" is "windowed" where shards have to be fetched, else "global"."""
        if policy == "windowed" or (policy == "auto" and self.remote):
            return WindowedOrder(self.sizes, window, seed, purpose)
        return Order(len(self), seed, purpose)

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, over the card and the checksums of every component of the split, shard by shard."""
        card = card_for_fingerprint(self.card.model_dump(mode="json", exclude={"domains"}))
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
    """The index of a split: the one beside `dataset.json` or in the cache if it is up to date, else built into the cache.

    Args:
        folder: a folder, or a URL.
        on_damage: "stop": anything wrong is an error; "skip": samples at fault are left out, `Index.problems` names them.
        damage_limit: share of the split's samples that may be left out.
        cache: GB of the local disk that remote shards may take.

    Raises:
        DataError: an unknown split, too much damage, or anything that `build_index` raises.
    """
    source = open_source(folder)
    card = read_card(str(source))
    if split not in card.splits:
        raise DataError(
            f"{source}/{CARD_FILE}: no split {split!r}; {suggest(split, list(card.splits))}; `mtgen shards split` makes others"
        )
    state = index_state(source, card)
    places = (
        [user_index_path(str(source))]
        if source.remote
        else [dataset_index_path(str(source)), user_index_path(str(source))]
    )
    opened = next((found for path in places if (found := read_index(path, state)) is not None), None)
    if opened is None:
        opened = read_index(
            build_index(str(source), progress=progress, on_damage="skip", cache=cache), index_state(source, card)
        )
    if opened is None:
        raise DataError(f"{source}: its shards changed while they were indexed; start again when they are complete")
    if on_damage == "stop":
        raise_problems(str(source), problems_of(opened[0]))
    index = Index(Shards(source, cache), split, card, *opened)
    claimed = card.splits[split].samples
    lost = claimed - len(index)
    if index.problems and (not len(index) or lost > damage_limit * claimed):
        kinds = ", ".join(
            f"{count} {kind}" for kind, count in Counter(problem.kind for problem in index.problems).most_common()
        )
        first = [f"{source}/{problem}" for problem in index.problems[:MAX_PROBLEMS_SHOWN]]
        what = f"{lost:,} of {claimed:,} samples of split {split!r} cannot be used ({kinds}), more than damage_limit={damage_limit:g}"
        raise DataError(
            "\n".join(
                [f"{source}: {what}", *first, f"`{shell_command('mtgen shards validate', source)}` lists every problem"]
            )
        )
    return index


@lru_cache(maxsize=64)
def _mask_table(classes: int, ignore: int) -> NDArray[np.int64]:
    table = np.full(256, -1, dtype=np.int64)
    table[:classes] = np.arange(classes)
    table[[ignore, IGNORE_INDEX]] = IGNORE_INDEX
    return table
