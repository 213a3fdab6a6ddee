"""Building an index: each shard is read once, by any of several processes, and a killed build resumes."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from mtgen.data.dataset_card import CARD_FILE, shard_names
from mtgen.data.index_file import INDEX_VERSION, IndexFile, ShardRecord, content_digest, rows_of, write_index
from mtgen.data.index_table import SCHEMA, rows, split_problems
from mtgen.data.shard_files import DEFAULT_CACHE_GB, Shards
from mtgen.data.shard_scan import Problem, key_of
from mtgen.errors import DataError, summarize_lines
from mtgen.schema import DatasetCard
from mtgen.storage.remote_store import RemoteStore, Version
from mtgen.storage.shard_cache import file_sha256
from mtgen.storage.source import LocalFolder
from mtgen.utils.executors import bounded_map, process_pool
from mtgen.utils.shell import shell_command

IndexProgress = Callable[[int, int], None]
"""Called with (items done, items in total)."""

OnDamage = Literal["stop", "skip"]

MAX_SERIAL_SAMPLES = 100_000
"""Smaller data sets are indexed in this process and without parts: that is faster than starting other processes."""

MAX_PROBLEMS_SHOWN = 20
"""Problems that one error lists; the others are counted."""

PARALLEL_REQUESTS = 32
"""Requests for versions and parts that are made to a store at the same time."""

PARALLEL_DOWNLOADS = 4
"""Shards that are downloaded at the same time, at least."""


def source_kind(source: LocalFolder | RemoteStore) -> str:
    """Scheme of a source, "file" for a folder: what the tags of its shards mean."""
    return source.scheme if isinstance(source, RemoteStore) else "file"


def current_shards(source: LocalFolder | RemoteStore, card: DatasetCard) -> dict[str, list[ShardRecord]]:
    """Split -> its shards with their sizes and tags of this moment; one request per shard of a store."""
    names = [(split, name) for split in card.splits for name in shard_names(str(source), card, split)]
    with ThreadPoolExecutor(PARALLEL_REQUESTS if source.remote else 1) as pool:
        versions = list(pool.map(source.version, [name for _, name in names]))
    found: dict[str, list[ShardRecord]] = {split: [] for split in card.splits}
    for (split, name), version in zip(names, versions, strict=True):
        found[split].append(ShardRecord(name, version.size, version.tag) if version else ShardRecord(name, 0, None))
    return found


class Parts:
    """Rows of shards that are indexed, as files in a folder of a source, until the index is complete.

    A part's name holds everything that it depends on, so that it is right whoever wrote it and whenever.
    """

    def __init__(self, source: LocalFolder | RemoteStore, folder: str, card: DatasetCard, kind: str) -> None:
        self.source = source
        self.folder = folder
        self._depends = [INDEX_VERSION, kind, card.classes, card.mask_classes, card.ignore_index]
        self._written: set[str] = set()

    @cached_property
    def _found(self) -> set[str]:
        """Names of the parts that were there when the first one was looked for."""
        return self.source.names(self.folder)

    def _name(self, shard: ShardRecord) -> str:
        text = json.dumps([*self._depends, shard.name, shard.size, shard.tag])
        return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.arrow"

    def read(self, shard: ShardRecord) -> pa.Table | None:
        """The rows of a shard, and its problems and digests in `shard`; `None` if there is no such part."""
        if (name := self._name(shard)) not in self._written and name not in self._found:
            return None
        if (data := self.source.read(f"{self.folder}/{name}")) is None:  # another process has completed the index
            return None
        try:
            table = pa.ipc.open_stream(data).read_all()
        except pa.ArrowException:
            return None
        _complete(shard, table, **json.loads(table.schema.metadata[b"mtgen"]))
        return table

    def write(self, shard: ShardRecord, table: pa.Table) -> None:
        """Store the rows, problems and digest of a shard."""
        about = {"sha256": shard.sha256, "problems": [list(asdict(found).values()) for found in shard.problems]}
        sink = pa.BufferOutputStream()
        schema = table.schema.with_metadata({"mtgen": json.dumps(about)})
        with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        name = self._name(shard)
        self.source.write(f"{self.folder}/{name}", sink.getvalue().to_pybytes())
        self._written.add(name)

    def remove(self) -> None:
        """Remove all parts."""
        self.source.remove(self.folder)


def _complete(shard: ShardRecord, table: pa.Table, sha256: str, problems: list[Any]) -> None:
    """Fill in what the rows of a shard tell about it."""
    shard.samples, shard.digest, shard.sha256 = table.num_rows, content_digest(table), sha256
    shard.problems = [Problem(*found) for found in problems]


ReadRows = Callable[..., tuple[pa.Table, list[Problem]]]
"""`index_table.rows`, which may run in another process."""


def usable_rows(path: Path, card: DatasetCard, shard: ShardRecord, read: ReadRows = rows) -> tuple[pa.Table, int]:
    """Read a shard: the rows that can be used, and the number of all; `shard` gets its problems and digests.

    Args:
        path: the shard as a local file.
    """
    table, problems = read(path, card, name=shard.name)
    count = table.num_rows
    table = _without(table, {key_of(p.key) for p in problems} | {p.key for p in problems})
    sha256 = file_sha256(path) if path.is_file() else ""
    _complete(shard, table, sha256, [list(asdict(problem).values()) for problem in problems])
    return table, count


class IndexBuilder:
    """Reads the shards of a data set that are new or have changed.

    Args:
        earlier: an older index, whose rows of unchanged shards are used.
        parts: where rows are kept until the index is complete; `None`: in memory, for small data sets.
        cache: GB of local disk that remote shards may take.
        processes: number of processes that read shards; default: one per available CPU, one for small data sets.
    """

    def __init__(
        self,
        source: LocalFolder | RemoteStore,
        card: DatasetCard,
        earlier: IndexFile | None = None,
        parts: Parts | None = None,
        cache: float = DEFAULT_CACHE_GB,
        processes: int | None = None,
    ) -> None:
        self.source = source
        self.card = card
        self.kind = source_kind(source)
        self.shards = current_shards(source, card)
        self._files = Shards(source, cache)
        self._parts = parts
        self._earlier = _reusable(earlier, self.kind, card)
        self._tables: dict[tuple[str, str], pa.Table] = {}
        self._total = sum(split.samples for split in card.splits.values())
        if processes is None:
            processes = len(os.sched_getaffinity(0)) if self._total > MAX_SERIAL_SAMPLES else 1
        self._processes = processes

    def _all(self) -> list[tuple[str, ShardRecord]]:
        return [(split, shard) for split, shards in self.shards.items() for shard in shards]

    def read_shards(self, part: tuple[int, int] = (0, 1), progress: IndexProgress | None = None) -> None:
        """Read every shard whose rows are not known, or of these shards the part `i` of `n`.

        Args:
            progress: called with (samples done, samples in total).
        """
        first, step = part
        mine = self._all()[first::step]
        threads = max(self._processes, PARALLEL_DOWNLOADS) if self.source.remote else self._processes
        done = 0
        with _shard_reader(self._processes) as read, ThreadPoolExecutor(threads) as pool:
            for count in bounded_map(pool, lambda item: self._read(*item, read), mine, 4 * threads):
                done += count
                if progress is not None:
                    progress(done, max(self._total // step, done))

    def _read(self, split: str, shard: ShardRecord, read: ReadRows) -> int:
        """Make sure that the rows of a shard are known; returns their number, those that cannot be used included."""
        if self._known(split, shard) is not None:
            return shard.samples
        if isinstance(self.source, LocalFolder):
            table, count = usable_rows(self.source.path / shard.name, self.card, shard, read)
        elif shard.tag is None:
            table, count = usable_rows(Path(shard.name), self.card, shard, read)
        else:
            file = self._files.open(shard.name, Version(shard.size, shard.tag))
            path = Path(f"/proc/{os.getpid()}/fd/{file.descriptor}")
            table, count = usable_rows(path, self.card, shard, read)
        if self._parts is None or shard.tag is None:
            self._tables[split, shard.name] = table
        else:
            self._parts.write(shard, table)
        return count

    def _known(self, split: str, shard: ShardRecord) -> pa.Table | None:
        """The rows of a shard if they are known, and its problems and digest in `shard`."""
        if (table := self._tables.get((split, shard.name))) is not None:
            return table
        if (found := self._earlier.get((split, shard.name, shard.size, shard.tag))) is not None:
            record, batch, begin = found
            shard.samples, shard.digest, shard.sha256 = record.samples, record.digest, record.sha256
            shard.problems = record.problems
            return rows_of(batch, begin, record.samples, SCHEMA)
        return self._parts.read(shard) if self._parts is not None else None

    def write(self, folder: Path) -> str:
        """Write the index of all shards to a folder and return its digest; shards that are not known yet are read.

        Raises:
            DataError: the folder cannot be written.
        """
        numbered = self._all()

        def table(number: int) -> pa.Table:
            split, shard = numbered[number]
            while (found := self._known(split, shard)) is None:  # its part has disappeared, or is damaged
                self._read(split, shard, rows)
            return found

        names = [(split, shard.name) for split, shard in numbered]
        found = [problem for _, shard in numbered for problem in shard.problems]
        problems = split_problems(self.card, names, table, found)
        for split, shards in self.shards.items():
            if any(shard.problems for shard in shards):  # samples were left out, so their number says nothing new
                problems[split] = [problem for problem in problems[split] if problem.file != CARD_FILE]
        kept = _first_of_each_key(numbered, problems, table)
        try:
            return write_index(folder, self.card.model_dump(mode="json"), self.kind, self.shards, kept, problems)
        except OSError as error:
            raise unwritable(folder, error) from None


def unwritable(folder: Path, error: OSError) -> DataError:
    """The error of an index that cannot be written to a folder."""
    return DataError(
        f"{folder}: the index cannot be written ({error.strerror}); set MTGEN_CACHE to a writable folder, "
        "or run `mtgen shards index` on the system that stores the data"
    )


def _reusable(
    earlier: IndexFile | None, kind: str, card: DatasetCard
) -> dict[tuple[str, str, int, str | None], tuple[ShardRecord, pa.RecordBatch, int]]:
    """Rows of an older index that still hold: (split, name, size, tag) -> record, table of samples, first row.

    None if the class numbers of `dataset.json` have changed their meaning since, or if samples were left out because
    of their keys.
    """
    meaning = ("classes", "mask_classes", "ignore_index")
    now = card.model_dump(mode="json")
    if earlier is None or earlier.kind != kind or any(earlier.problems.values()):
        return {}
    if any(earlier.card.get(key) != now[key] for key in meaning):
        return {}
    known: dict[tuple[str, str, int, str | None], tuple[ShardRecord, pa.RecordBatch, int]] = {}
    for split in earlier.splits:
        if not earlier.has_samples(split):
            continue
        batch, begin = earlier.samples(split), 0
        for record in earlier.records(split):
            if record.tag is not None:
                known[split, record.name, record.size, record.tag] = (record, batch, begin)
            begin += record.samples
    return known


def _first_of_each_key(
    shards: list[tuple[str, ShardRecord]], problems: dict[str, list[Problem]], table: Callable[[int], pa.Table]
) -> Iterator[pa.Table]:
    """The rows of every shard; of several samples of a split with one key only the first one."""
    duplicates = {
        split: pa.array([p.key for p in found if p.key], pa.large_string()) for split, found in problems.items()
    }
    seen: dict[str, set[str]] = {split: set() for split in problems}
    for number, (split, _) in enumerate(shards):
        rows = table(number)
        repeated = pc.is_in(rows["key"], duplicates[split]).to_numpy() if len(duplicates[split]) else []
        if any(repeated):
            keep = []
            for key, suspect in zip(rows["key"].to_pylist(), repeated, strict=True):
                keep.append(not suspect or key not in seen[split])
                seen[split].add(key if suspect else "")
            rows = rows.filter(pa.array(keep, pa.bool_()))
        yield rows


@contextmanager
def _shard_reader(processes: int) -> Iterator[ReadRows]:
    """`index_table.rows`, run in this process or in `processes` others.

    Tar files are parsed in Python, so threads would wait for each other.
    """
    try:
        with process_pool(processes) as pool:
            yield lambda *arguments, **named: pool.submit(rows, *arguments, **named).result()
    except BrokenProcessPool:
        raise DataError("a process that reads shards was killed (out of memory?); start again") from None


def _without(table: pa.Table, keys: set[str]) -> pa.Table:
    """The rows whose key is not in `keys`; "" stands for problems of a whole file and matches none."""
    if not keys - {""}:
        return table
    return table.filter(pc.invert(pc.is_in(table["key"], pa.array(sorted(keys - {""}), pa.large_string()))))


def raise_problems(folder: str, problems: list[Problem]) -> None:
    """Raise `DataError` with the first problems, if there are any."""
    if problems:
        lines = summarize_lines([f"{folder}/{problem}" for problem in problems], MAX_PROBLEMS_SHOWN, "problems")
        command = shell_command("mtgen shards validate", folder)
        raise DataError("\n".join([*lines, f"`{command}` decodes everything and lists every problem"]))
