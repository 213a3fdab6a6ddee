"""Building, writing and reading the index of a data set: a Parquet file with one row per sample.

Its metadata records the name, size and version of every shard, which tell whether the index is up to date.
"""

import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtgen.data.dataset_card import CARD_FILE, read_card, shard_names
from mtgen.data.index_table import SCHEMA, STORED_PARTS, joined, rows, split_problems
from mtgen.data.shard_scan import Problem, key_of
from mtgen.errors import DataError, summarize_lines
from mtgen.schema import COMPONENTS, DatasetCard
from mtgen.storage.shard_cache import GB, CachedFile, ShardCache, root
from mtgen.storage.source import LocalFolder, RemoteStore, Version, open_source
from mtgen.utils.shell import shell_command

IndexProgress = Callable[[int, int], None]
"""Called with (items done, items in total)."""

OnDamage = Literal["stop", "skip"]

INDEX_VERSION = 3

ROWS_PER_GROUP = 1 << 16
"""Samples per row group of the Parquet file; a row group belongs to one split."""

MAX_SERIAL_SAMPLES = 100_000
"""Smaller data sets are indexed in this process: that is faster than starting other processes."""

MAX_PROBLEMS_SHOWN = 20
"""Problems that one error lists; the others are counted."""

MAX_PARALLEL_DOWNLOADS = 4
"""Shards that are downloaded at the same time."""

DEFAULT_CACHE_GB = 50.0
"""Default limit of the disk space on a node for the shards of remote data sets, GB."""


def dataset_index_path(folder: str | Path) -> Path:
    """Path of the index in the data set's folder, which all users share."""
    return Path(folder) / "index.parquet"


def user_index_path(folder: str | Path) -> Path:
    """Path of this user's own index of a data set, in `$MTGEN_CACHE`, else `~/.cache/mtgen`."""
    name = str(open_source(folder)) if not Path(folder).exists() else str(Path(folder).resolve())
    return root() / "index" / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}.parquet"


class Shards:
    """The shards of a source as open files."""

    def __init__(self, source: LocalFolder | RemoteStore, cache: float) -> None:
        self.source = source
        self.cache = ShardCache(root() / "shards", int(cache * GB))

    def open(self, name: str, size: int, tag: str) -> CachedFile:
        """Open a shard: a local one in its folder, a remote one in the cache, after downloading it if necessary."""
        if isinstance(self.source, LocalFolder):
            return CachedFile(os.open(self.source.path / name, os.O_RDONLY | os.O_CLOEXEC))
        return self.cache.open(self.source, name, Version(size, tag))


def build_index(
    folder: str | Path,
    out: Path | None = None,
    progress: IndexProgress | None = None,
    *,
    on_damage: OnDamage = "stop",
    cache: float = DEFAULT_CACHE_GB,
    processes: int | None = None,
) -> Path:
    """Read every shard that is new or has changed, write the index and return its path.

    Args:
        out: file to write; default: the user's cache.
        progress: called with (samples done, samples in total).
        processes: number of processes that read shards; default: one per available CPU, one for small data sets.

    Raises:
        DataError: with `on_damage="stop"`, everything that is wrong: the first 20 problems and the number of others.
    """
    source = open_source(folder)
    out = out or user_index_path(folder)
    card = read_card(folder)
    state = index_state(source, card)
    shards = Shards(source, cache)
    known = _known(out, state)
    done, total = 0, sum(split.samples for split in card.splits.values())
    tables: list[pa.Table] = []

    def scan(number: int) -> tuple[pa.Table, list[Problem]]:
        shard = state["shards"][number]
        if (previous := known.get((shard["split"], shard["name"], shard["size"], shard["tag"]))) is not None:
            table, problems = previous
            return table.set_column(2, "shard", pa.array(np.full(table.num_rows, number, np.int32))), problems
        if isinstance(source, LocalFolder) or shard["tag"] is None:
            path = Path(folder) / shard["name"] if isinstance(source, LocalFolder) else Path(shard["name"])
            return read(path, shard["split"], number, card, name=shard["name"])
        file = shards.open(shard["name"], shard["size"], shard["tag"])
        return read(Path(f"/proc/{os.getpid()}/fd/{file.descriptor}"), shard["split"], number, card, name=shard["name"])

    if processes is None:
        new = sum(shard["tag"] is None or tuple(shard.values()) not in known for shard in state["shards"])
        processes = max(min(len(os.sched_getaffinity(0)), new), 1) if total > MAX_SERIAL_SAMPLES else 1
    threads = max(MAX_PARALLEL_DOWNLOADS, processes) if source.remote else processes
    with _shard_reader(processes) as read, ThreadPoolExecutor(threads) as pool:
        for number, (table, problems) in enumerate(pool.map(scan, range(len(state["shards"])))):
            done += table.num_rows
            state["shards"][number]["problems"] = [list(asdict(problem).values()) for problem in problems]
            tables.append(_without(table, {key_of(p.key) for p in problems} | {p.key for p in problems}))
            if progress is not None:
                progress(done, total)
    _check_splits(tables, state, card)
    _write(tables, state, out)
    if on_damage == "stop":
        raise_problems(str(folder), problems_of(state))
    return out


@contextmanager
def _shard_reader(processes: int) -> Iterator[Callable[..., tuple[pa.Table, list[Problem]]]]:
    """`index_table.rows`, run in this process or in `processes` others.

    Tar files are parsed in Python, so threads would wait for each other.
    """
    if processes == 1:
        yield rows
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("forkserver")) as pool:
        try:
            yield lambda *arguments, **named: pool.submit(rows, *arguments, **named).result()
        except BrokenProcessPool:
            raise DataError("a process that reads shards was killed (out of memory?); start again") from None


def _without(table: pa.Table, keys: set[str]) -> pa.Table:
    """The rows whose key is not in `keys`; "" stands for problems of a whole file and matches none."""
    if not keys - {""}:
        return table
    return table.filter(pc.invert(pc.is_in(table["key"], pa.array(sorted(keys - {""}), pa.string()))))


def _check_splits(tables: list[pa.Table], state: dict[str, Any], card: DatasetCard) -> None:
    """Record the problems that only whole splits show, and keep only the first sample of every key."""
    shards = state["shards"]
    shard_problems = [Problem(*problem) for shard in shards for problem in shard["problems"]]
    incomplete = {shard["split"] for shard in shards if shard["problems"]}
    table = joined(tables)
    state["problems"] = {}
    for split, claimed in card.splits.items():
        only_this = card.model_copy(update={"splits": {split: claimed}})
        problems = split_problems(table, only_this, [(s["split"], s["name"]) for s in shards], shard_problems)
        if split in incomplete:  # samples were left out, so their number says nothing new
            problems = [p for p in problems if p.file != CARD_FILE]
        state["problems"][split] = [list(asdict(p).values()) for p in problems]
        if duplicates := {p.key for p in problems if p.key}:
            _keep_first([n for n, shard in enumerate(shards) if shard["split"] == split], tables, duplicates)


def _keep_first(numbers: list[int], tables: list[pa.Table], duplicates: set[str]) -> None:
    """Drop all but the first row of each duplicate key from the tables of one split, given by their numbers."""
    seen: set[str] = set()
    for number in numbers:
        keep = []
        for key in tables[number]["key"].to_pylist():
            keep.append(key not in seen)
            if key in duplicates:
                seen.add(key)
        tables[number] = tables[number].filter(pa.array(keep, pa.bool_()))


def problems_of(state: dict[str, Any]) -> list[Problem]:
    """The problems recorded in an index: those of shards and their samples, then those of whole splits."""
    found = [Problem(*problem) for shard in state["shards"] for problem in shard["problems"]]
    return found + [Problem(*problem) for problems in state["problems"].values() for problem in problems]


def raise_problems(folder: str, problems: list[Problem]) -> None:
    """Raise `DataError` with the first problems, if there are any."""
    if problems:
        lines = summarize_lines([f"{folder}/{problem}" for problem in problems], MAX_PROBLEMS_SHOWN, "problems")
        command = shell_command("mtgen shards validate", folder)
        raise DataError("\n".join([*lines, f"`{command}` decodes everything and lists every problem"]))


def index_state(source: LocalFolder | RemoteStore, card: DatasetCard) -> dict[str, Any]:
    """Everything an index depends on; an index that was built from an equal state is up to date."""
    names = [(split, name) for split in card.splits for name in shard_names(str(source), card, split)]
    with ThreadPoolExecutor(4 * MAX_PARALLEL_DOWNLOADS if source.remote else 1) as pool:
        versions = list(pool.map(source.version, [name for _, name in names]))
    shards = [
        {"split": split, "name": name, "size": version.size if version else 0, "tag": version.tag if version else None}
        for (split, name), version in zip(names, versions, strict=True)
    ]
    return {"version": INDEX_VERSION, "card": card.model_dump(mode="json"), "shards": shards}


def _recorded(path: Path) -> tuple[dict[str, Any], pq.ParquetFile] | None:
    """The state recorded in an index file, and the file; `None` if it does not exist or cannot be read."""
    if not path.is_file():
        return None
    try:
        file = pq.ParquetFile(path)
        return json.loads((file.schema_arrow.metadata or {}).get(b"mtgen", b"{}")), file
    except (pa.ArrowException, OSError, ValueError):  # a damaged index counts as missing: it is built again
        return None


def read_index(path: Path, state: dict[str, Any]) -> tuple[dict[str, Any], pq.ParquetFile] | None:
    """Open an index file; `None` if it does not exist or is out of date."""
    if (recorded := _recorded(path)) is None:
        return None
    old = recorded[0]
    shards = [{key: shard.get(key) for key in ("split", "name", "size", "tag")} for shard in old.get("shards", [])]
    same = {**state, "shards": shards} == state and all(old.get(key) == state[key] for key in ("version", "card"))
    return recorded if same else None


def _known(path: Path, state: dict[str, Any]) -> dict[tuple[Any, ...], tuple[pa.Table, list[Problem]]]:
    """Rows and problems of an older index: (split, name, size, tag) of a shard -> its part, to be reused.

    Empty if the class numbers of `dataset.json` have changed their meaning since.
    """
    recorded = _recorded(path)
    if recorded is None or recorded[0].get("version") != INDEX_VERSION:
        return {}
    old, file = recorded
    meaning = ("classes", "mask_classes", "ignore_index")
    if any(old["card"].get(key) != state["card"].get(key) for key in meaning) or any(old["problems"].values()):
        return {}
    try:
        table = file.read()
    except (pa.ArrowException, OSError):
        return {}
    known, begin = {}, 0
    for shard in old["shards"]:
        part = _with_all_columns(table.slice(begin, shard["rows"]))
        problems = [Problem(*problem) for problem in shard["problems"]]
        known[shard["split"], shard["name"], shard["size"], shard["tag"]] = (part, problems)
        begin += shard["rows"]
    return {key: value for key, value in known.items() if key[3] is not None}


def _with_all_columns(part: pa.Table) -> pa.Table:
    """Add the columns of components that no sample has, which the file leaves out."""
    columns = {}
    for field in SCHEMA:
        if field.name in part.column_names:
            columns[field.name] = part[field.name].cast(field.type)
        else:
            columns[field.name] = pa.array(
                np.full(part.num_rows, -1 if field.name.endswith("_offset") else 0), field.type
            )
    return pa.table(columns, schema=SCHEMA)


def _write(tables: list[pa.Table], state: dict[str, Any], out: Path) -> None:
    """Write the index to a temporary file and rename it, so that `out` is never half written."""
    for shard, table in zip(state["shards"], tables, strict=True):
        digest = hashlib.sha256()
        for component in STORED_PARTS:
            digest.update(np.ascontiguousarray(table[f"{component}_size"].to_numpy()).tobytes())
            digest.update(np.ascontiguousarray(table[f"{component}_crc"].to_numpy()).tobytes())
        shard |= {"rows": table.num_rows, "digest": digest.hexdigest()}
    table = joined(tables)
    absent = {p for p in COMPONENTS if not pc.any(pc.greater_equal(table[f"{p}_offset"], 0)).as_py()}
    table = table.select([name for name in table.column_names if name.rpartition("_")[0] not in absent])
    state["groups"] = {}
    begin = group = 0
    parts = []
    for split in state["card"]["splits"]:
        count = sum(shard["rows"] for shard in state["shards"] if shard["split"] == split)
        groups = -(-count // ROWS_PER_GROUP)
        parts.append(table.slice(begin, count))
        state["groups"][split] = list(range(group, group + groups))
        begin += count
        group += groups
    schema = table.schema.with_metadata({"mtgen": json.dumps(state)})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=out.name, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
        try:
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for part in parts:
                    if part.num_rows:
                        part = part.replace_schema_metadata(schema.metadata)
                        writer.write_table(part, row_group_size=ROWS_PER_GROUP)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{out}: the index cannot be written ({error.strerror}); set MTGEN_CACHE to a writable folder, "
            "or run `mtgen shards index` on the system that stores the data"
        ) from None
