"""The files of an index: a table of shards, and per split a table of samples whose columns are mapped into memory.

Both are Arrow IPC files named by their SHA-256. The table of shards is the manifest: it lists name, size, tag, samples
and digests of every shard, and its metadata names the tables of samples. Whoever knows its digest knows all.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray

from mtgen.data.columns import Column, chunks
from mtgen.data.index_table import FORMATS, STORED_PARTS
from mtgen.data.key_hashes import key_hashes
from mtgen.data.shard_scan import Problem
from mtgen.schema import COMPONENTS
from mtgen.storage.shard_cache import file_sha256

INDEX_VERSION = 5

ROWS_IN_MEMORY = 1 << 20
"""Columns of larger splits are collected in temporary files while an index is written."""

_SHARDS_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("size", pa.int64()),
        ("tag", pa.string()),
        ("samples", pa.int64()),
        ("digest", pa.binary(32)),
        ("sha256", pa.binary(32)),
        ("problems", pa.string()),
    ]
)
_FIXED = {"format": np.uint8, "width": np.int32, "height": np.int32, "label": np.int64}
_LOCATION = {"offset": np.int64, "size": np.int32, "crc": np.uint32}


@dataclass
class ShardRecord:
    """What an index knows of a shard.

    Attributes:
        name: relative to `dataset.json`.
        size, tag: see `Version`; the tag of a shard that does not exist is `None`.
        samples: number of samples that can be used.
        digest: SHA-256 (hexadecimal) over the sizes and checksums of their components.
        sha256: of the whole file; "" if it does not exist.
        problems: what is wrong with it.
    """

    name: str
    size: int
    tag: str | None
    samples: int = 0
    digest: str = ""
    sha256: str = ""
    problems: list[Problem] = field(default_factory=list)


def content_digest(table: pa.Table) -> str:
    """SHA-256 (hexadecimal) over the sizes and checksums of all components of some rows, column by column."""
    digest = hashlib.sha256()
    for part in STORED_PARTS:
        digest.update(np.ascontiguousarray(table[f"{part}_size"].to_numpy()).tobytes())
        digest.update(np.ascontiguousarray(table[f"{part}_crc"].to_numpy()).tobytes())
    return digest.hexdigest()


def shards_file(digest: str) -> str:
    """Name of the table of shards with a digest."""
    return f"shards-{digest[:16]}.arrow"


class IndexFile:
    """An index in a folder of the local disk.

    Attributes:
        folder: where its files are.
        digest: SHA-256 of its table of shards, hexadecimal.
        card: the card that it was built for, as JSON.
        kind: scheme of the source it was built from, "file" for a folder: tags of other sources mean nothing here.
        splits: split -> "first" and "shards" (its rows in the table of shards), "samples" (number), and "file", "size"
            and "sha256" of its table of samples.
        problems: what only whole splits show, by split.
    """

    def __init__(self, folder: Path, digest: str, metadata: dict[str, Any], shards: pa.Table) -> None:
        self.folder = folder
        self.digest = digest
        self.card: dict[str, Any] = metadata["card"]
        self.kind: str = metadata["kind"]
        self.splits: dict[str, dict[str, Any]] = metadata["splits"]
        self.problems = {
            split: [Problem(*found) for found in problems] for split, problems in metadata["problems"].items()
        }
        self._shards = shards

    @staticmethod
    def open(folder: Path, digest: str) -> "IndexFile | None":
        """Open the index with a digest; `None` if it does not exist, is damaged, or is of another version."""
        path = folder / shards_file(digest)
        try:
            if file_sha256(path) != digest:
                return None
            shards = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            metadata = json.loads((shards.schema.metadata or {}).get(b"mtgen", b"{}"))
        except (pa.ArrowException, OSError, ValueError):
            return None
        return IndexFile(folder, digest, metadata, shards) if metadata.get("version") == INDEX_VERSION else None

    def shards(self, split: str) -> pa.Table:
        """Table of the split's shards: "name", "size", "tag", "samples", "digest", "sha256", "problems"."""
        part = self.splits[split]
        return self._shards.slice(part["first"], part["shards"])

    def records(self, split: str) -> list[ShardRecord]:
        """The split's shards."""
        return [
            ShardRecord(
                row["name"],
                row["size"],
                row["tag"],
                row["samples"],
                row["digest"].hex(),
                row["sha256"].hex() if row["tag"] is not None else "",
                _problems(row["problems"]),
            )
            for row in self.shards(split).to_pylist()
        ]

    def shard_problems(self, split: str) -> list[Problem]:
        """What is wrong with the split's shards and their samples."""
        texts = self.shards(split)["problems"]
        return [found for text in texts.filter(pc.not_equal(texts, "")).to_pylist() for found in _problems(text)]

    def all_problems(self) -> list[Problem]:
        """The problems of shards and their samples, then those of whole splits."""
        found = [problem for split in self.splits for problem in self.shard_problems(split)]
        return found + [problem for problems in self.problems.values() for problem in problems]

    def has_samples(self, split: str) -> bool:
        """Whether the split's table of samples is there, as far as its size tells."""
        part = self.splits[split]
        try:
            return (self.folder / part["file"]).stat().st_size == part["size"]
        except OSError:
            return False

    def samples(self, split: str) -> pa.RecordBatch:
        """The split's samples, mapped into memory: a row is read from the disk when it is used.

        Raises:
            OSError, pyarrow.ArrowException: the file does not exist or is damaged.
        """
        path = self.folder / self.splits[split]["file"]
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _problems(text: str) -> list[Problem]:
    return [Problem(*found) for found in json.loads(text)] if text else []


def write_index(
    folder: Path,
    card: dict[str, Any],
    kind: str,
    shards: Mapping[str, Sequence[ShardRecord]],
    tables: Iterable[pa.Table],
    problems: dict[str, list[Problem]],
) -> str:
    """Write an index; returns its digest.

    Args:
        card, kind, problems: see `IndexFile`.
        shards: split -> its shards.
        tables: the rows of every shard, in the order of `shards`; their number may be smaller than the record says,
            and is corrected there, as is the digest.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = iter(tables)
    splits: dict[str, dict[str, Any]] = {}
    first = 0
    for split, records in shards.items():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
            columns = _Columns(Path(temporary), sum(record.samples for record in records))
            for record in records:
                table = next(rows)
                if table.num_rows != record.samples:
                    record.samples, record.digest = table.num_rows, content_digest(table)
                columns.append(table)
            batch = columns.finish()
            path = _write(folder, "samples", batch.schema, [batch])
        splits[split] = {"first": first, "shards": len(records), "samples": len(batch)}
        splits[split] |= {"file": path.name, "size": path.stat().st_size, "sha256": file_sha256(path)}
        first += len(records)
    metadata = {
        "version": INDEX_VERSION,
        "card": card,
        "kind": kind,
        "splits": splits,
        "problems": {split: [list(asdict(found).values()) for found in some] for split, some in problems.items()},
    }
    schema = _SHARDS_SCHEMA.with_metadata({"mtgen": json.dumps(metadata)})
    records = [record for some in shards.values() for record in some]
    table = pa.table(
        {
            "name": [record.name for record in records],
            "size": [record.size for record in records],
            "tag": [record.tag for record in records],
            "samples": [record.samples for record in records],
            "digest": [bytes.fromhex(record.digest) for record in records],
            "sha256": [bytes.fromhex(record.sha256 or "00" * 32) for record in records],
            "problems": [
                json.dumps([list(asdict(found).values()) for found in record.problems]) if record.problems else ""
                for record in records
            ],
        },
        schema=schema,
    )
    return file_sha256(_write(folder, "shards", schema, table.combine_chunks().to_batches()))


def _write(folder: Path, kind: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Path:
    """Write an Arrow IPC file under a name that holds its SHA-256, complete whenever it can be seen."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{kind}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        with pa.ipc.new_file(str(temporary), schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        temporary.chmod(0o644)
        return temporary.rename(folder / f"{kind}-{file_sha256(temporary)[:16]}.arrow")
    finally:
        temporary.unlink(missing_ok=True)


class _Columns:
    """Collects the rows of a split in columns of a known length, in temporary files if it is large.

    Columns of components that no sample has are left out.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        self._folder = folder
        self._rows = rows
        self._count = 0
        self._columns = {name: self._new(name, kind) for name, kind in _FIXED.items()}
        self._key_ends = self._new("key", np.int64, rows + 1)
        self._keys = (folder / "keys").open("wb")

    def _new(self, name: str, kind: DTypeLike, rows: int | None = None) -> NDArray[Any]:
        rows = self._rows if rows is None else rows
        if rows <= ROWS_IN_MEMORY:
            return np.zeros(rows, kind)
        return np.memmap(self._folder / name, kind, "w+", shape=(rows,))

    def append(self, table: pa.Table) -> None:
        """Add the rows of a shard."""
        begin, end = self._count, self._count + table.num_rows
        self._count = end
        for name in _FIXED:
            self._columns[name][begin:end] = table[name].to_numpy()
        for part in STORED_PARTS:
            offsets = table[f"{part}_offset"].to_numpy()
            if f"{part}_offset" not in self._columns:
                if not (offsets >= 0).any():
                    continue
                for name, kind in _LOCATION.items():
                    self._columns[f"{part}_{name}"] = self._new(f"{part}_{name}", kind)
                self._columns[f"{part}_offset"][:begin] = -1
                if part in COMPONENTS:
                    self._columns[f"{part}_present"] = self._new(f"{part}_present", np.uint8)
            for name in _LOCATION:
                self._columns[f"{part}_{name}"][begin:end] = table[f"{part}_{name}"].to_numpy()
            if part in COMPONENTS:
                self._columns[f"{part}_present"][begin:end] = offsets >= 0
        for chunk in table["key"].chunks:
            _, ends, data = chunk.buffers()
            own = np.frombuffer(ends, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
            written = int(self._key_ends[begin])
            self._key_ends[begin : begin + len(own)] = own - own[0] + written
            if data is not None:
                self._keys.write(memoryview(data)[own[0] : own[-1]])
            begin += len(chunk)

    def finish(self) -> pa.RecordBatch:
        """All rows, in columns that are not copied."""
        self._keys.close()
        count = self._count
        arrays = {
            name: pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), count, [None, pa.py_buffer(column[:count])])
            for name, column in self._columns.items()
        }
        keys = [None, pa.py_buffer(self._key_ends[: count + 1]), _mapped(self._folder / "keys")]
        arrays["key"] = pa.Array.from_buffers(pa.large_string(), count, keys)
        return pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))


def _mapped(path: Path) -> pa.Buffer:
    return pa.memory_map(str(path)).read_buffer() if path.stat().st_size else pa.py_buffer(b"")


def rows_of(batch: pa.RecordBatch, begin: int, count: int, schema: pa.Schema) -> pa.Table:
    """Rows of a table of samples as a table with all columns of `schema`, missing components and hashes included."""
    part = batch.slice(begin, count)
    columns = {}
    for item in schema:
        if item.name in part.schema.names:
            columns[item.name] = part.column(item.name).cast(item.type)
        elif item.name != "key_hash":
            columns[item.name] = pa.array(np.full(count, -1 if item.name.endswith("_offset") else 0), item.type)
    columns["key_hash"] = pa.array(key_hashes(columns["key"].to_pylist()))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def format_counts(column: Column) -> dict[str, int]:
    """Format of the stored images ("jpeg", "png", "webp") -> how many samples have it.

    Args:
        column: `[N]` numbers of formats.
    """
    counts = sum((np.bincount(part, minlength=len(FORMATS)) for part in chunks(column)), np.zeros(len(FORMATS), int))
    return {name: int(count) for name, count in zip(FORMATS, counts, strict=True) if count}
