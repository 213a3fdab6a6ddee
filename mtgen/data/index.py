"""The index of a data set: one row a sample, in columns; what to read where, and what to expect there."""

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtgen.data.card import CARD, read_card, shard_names
from mtgen.data.scan import Problem
from mtgen.data.table import PARTS, joined, rows, split_problems
from mtgen.errors import DamagedSample, DataError
from mtgen.registry import suggest
from mtgen.schema import COMPONENTS, IGNORE, DatasetCard

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""

VERSION = 1
OPEN = 256
"""Shards that are held open at once."""

SHOWN = 20
"""Problems that one error lists; the rest is counted."""


def beside(folder: str | Path) -> Path:
    """Where a data set's own index lies: in its folder, for all who read it."""
    return Path(folder) / "index.parquet"


def cached(folder: str | Path) -> Path:
    """Where this user's index of a data set lies: `$MTGEN_CACHE`, else `~/.cache/mtgen`."""
    root = Path(os.environ.get("MTGEN_CACHE") or Path.home() / ".cache" / "mtgen")
    return root / "index" / f"{hashlib.sha256(os.fsencode(Path(folder).resolve())).hexdigest()[:24]}.parquet"


@dataclass(frozen=True)
class _File:
    """A descriptor that is closed when nobody reads through it any more; reading with an offset is safe after a fork."""

    descriptor: int

    def __del__(self) -> None:
        os.close(self.descriptor)


class Index:
    """One split: where every component lies, and what is known without decoding. Safe to use after a fork.

    Attributes:
        card: the data set's `dataset.json`.
        folder, split: what was opened.
        label: `[N]` int64 class number, -1 where missing.
        width, height: `[N]` int32, pixels of the stored image.
        present: component ("class", "mask", "boxes", "caption", "sound") -> `[N]` bool.
    """

    def __init__(self, folder: Path, split: str, card: DatasetCard, shards: list[str], table: pa.Table) -> None:
        self.folder, self.split, self.card = folder, split, card
        self._shards, self._keys = shards, table["key"].combine_chunks()
        columns = {name: table[name].to_numpy() for name in table.column_names if name not in ("split", "key", "format")}
        self._shard, self._columns = columns["shard"], columns
        self.label: NDArray[np.int64] = columns["label"]
        self.width: NDArray[np.int32] = columns["width"]
        self.height: NDArray[np.int32] = columns["height"]
        self.present: dict[str, NDArray[np.bool_]] = {c: columns[f"{c}_offset"] >= 0 for c in COMPONENTS}
        self._open = lru_cache(maxsize=OPEN)(lambda name: _File(os.open(folder / name, os.O_RDONLY)))

    def __len__(self) -> int:
        return len(self.label)

    def key(self, i: int) -> str:
        """The sample's key, as in WebDataset."""
        return str(self._keys[int(i)].as_py())

    def shard(self, i: int) -> str:
        """File name of the shard that holds the sample."""
        return self._shards[self._shard[i]]

    def name(self, i: int) -> str:
        """Where the sample is, for errors: its shard and its key."""
        return f"{self.folder / self.shard(i)}: {self.key(i)}"

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
        offset, size = int(self._columns[f"{component}_offset"][i]), int(self._columns[f"{component}_size"][i])
        if offset < 0:
            raise KeyError(f"{self.key(i)} has no {component}")
        try:
            data = os.pread(self._open(self.shard(i)).descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{self.name(i)}: cannot be read ({error.strerror})") from None
        if zlib.crc32(data) != self._columns[f"{component}_crc"][i]:
            what = f"{component} is not what was indexed; the shard changed while it was in use or is damaged"
            raise DamagedSample("checksum", self.name(i), f"{what}: run `mtgen shards validate`, then start again")
        return data

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, over the card and the checksums of every component of the split in order."""
        digest = hashlib.sha256(json.dumps(self.card.model_dump(mode="json"), sort_keys=True).encode())
        for part in PARTS:
            digest.update(np.ascontiguousarray(self._columns[f"{part}_size"]).tobytes())
            digest.update(np.ascontiguousarray(self._columns[f"{part}_crc"]).tobytes())
        return digest.hexdigest()


@lru_cache(maxsize=64)
def _mask_table(classes: int, ignore: int) -> NDArray[np.int64]:
    table = np.full(256, -1, dtype=np.int64)
    table[:classes] = np.arange(classes)
    table[[ignore, IGNORE]] = IGNORE
    return table


def open_index(folder: str | Path, split: str, progress: Progress | None = None) -> Index:
    """The index of a split: the one beside `dataset.json` or in the cache if it is up to date, else built into the cache.

    Raises:
        DataError: an unknown split, or anything that `build_index` raises.
    """
    folder = Path(folder).resolve() if Path(folder).is_dir() else Path(folder)
    card = read_card(folder)
    if split not in card.splits:
        raise DataError(f"{folder / CARD}: no split {split!r}; {suggest(split, list(card.splits))}")
    state = _state(folder, card)
    for path in (beside(folder), cached(folder)):
        if (index := _read(path, folder, split, card, state)) is not None:
            return index
    index = _read(build_index(folder, progress=progress), folder, split, card, _state(folder, card))
    if index is None:
        raise DataError(f"{folder}: its shards changed while they were indexed; start again when they are complete")
    return index


def build_index(folder: str | Path, out: Path | None = None, progress: Progress | None = None) -> Path:
    """Read every shard once and write the index to `out` (default: the cache); returns where it is.

    Raises:
        DataError: everything that is wrong, up to 20 lines and a count of the rest.
    """
    folder, out = Path(folder), out or cached(folder)
    card = read_card(folder)
    state = _state(folder, card)
    problems: list[Problem] = []
    tables, done, total = [], 0, sum(split.samples for split in card.splits.values())
    for number, shard in enumerate(state["shards"]):
        table, found = rows(folder / shard["name"], shard["split"], number, card)
        problems += found
        tables.append(table)
        done += table.num_rows
        if progress is not None:
            progress(done, total)
    table = joined(tables)
    problems += split_problems(table, card, [(shard["split"], shard["name"]) for shard in state["shards"]], problems)
    if problems:
        lines = [f"{folder}/{problem}" for problem in problems[:SHOWN]]
        more = [f"and {len(problems) - SHOWN:,} more problems"] if len(problems) > SHOWN else []
        raise DataError("\n".join([*lines, *more, f"`mtgen shards validate {folder}` decodes everything and lists every problem"]))
    _write(table.replace_schema_metadata({"mtgen": json.dumps(state)}), out)
    return out


def _state(folder: Path, card: DatasetCard) -> dict[str, Any]:
    """What an index depends on; equal states mean that it is up to date."""
    shards = []
    for split in card.splits:
        for name in shard_names(folder, card, split):
            path = folder / name
            status = path.stat() if path.is_file() else None
            shards.append(
                {"split": split, "name": name, "size": status.st_size if status else 0, "mtime": status.st_mtime_ns if status else 0}
            )
    return {"version": VERSION, "card": card.model_dump(mode="json"), "shards": shards}


def _read(path: Path, folder: Path, split: str, card: DatasetCard, state: dict[str, Any]) -> Index | None:
    """The index in a file, `None` where there is none or it is out of date."""
    if not path.is_file():
        return None
    try:
        recorded = json.loads((pq.read_schema(path).metadata or {}).get(b"mtgen", b"{}"))
        table = pq.read_table(path, filters=[("split", "=", split)]) if recorded == state else None
    except (pa.ArrowException, OSError, ValueError):  # a damaged index is as good as none: it is built again
        return None
    return None if table is None else Index(folder, split, card, [shard["name"] for shard in state["shards"]], table)


def _write(table: pa.Table, out: Path) -> None:
    """Write beside and rename, so that builders at the same time and a full disk leave a whole index or none."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=out.name, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
        try:
            pq.write_table(table, temporary, compression="zstd", row_group_size=1 << 16)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{out}: the index cannot be written ({error.strerror}); point MTGEN_CACHE at a folder that can be written, "
            "or run `mtgen shards index` where the data is"
        ) from None
