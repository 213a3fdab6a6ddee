"""Building the index of a data set, and the file that it is: one row a sample, and in its metadata what every shard was."""

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
from mtgen.schema import DatasetCard
from mtgen.storage.shard_cache import GB, CachedFile, ShardCache, root
from mtgen.storage.source import LocalFolder, RemoteStore, Version, open_source
from mtgen.utils.shell import shell_command

IndexProgress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""

OnDamage = Literal["stop", "skip"]

INDEX_VERSION = 3

ROWS_PER_GROUP = 1 << 16
"""Samples of one piece of the file; a piece is of one split."""

MAX_SERIAL_SAMPLES = 100_000
"""Up to so many samples are indexed sooner than other processes have started."""

MAX_PROBLEMS_SHOWN = 20
"""Problems that one error lists; the rest is counted."""

MAX_PARALLEL_DOWNLOADS = 4
"""Shards that are downloaded at the same time."""

DEFAULT_CACHE_GB = 50.0
"""GB that the shards of remote data sets may take on a node's disk, unless the configuration says otherwise."""


def dataset_index_path(folder: str | Path) -> Path:
    """Where a data set's own index lies: in its folder, for all who read it."""
    return Path(folder) / "index.parquet"


def user_index_path(folder: str | Path) -> Path:
    """Where this user's index of a data set lies: `$MTGEN_CACHE`, else `~/.cache/mtgen`."""
    name = str(open_source(folder)) if not Path(folder).exists() else str(Path(folder).resolve())
    return root() / "index" / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}.parquet"


class Shards:
    """The shards of a source as open files."""

    def __init__(self, source: LocalFolder | RemoteStore, cache: float) -> None:
        self.source = source
        self.cache = ShardCache(root() / "shards", int(cache * GB))

    def open(self, name: str, size: int, tag: str) -> CachedFile:
        """A shard, from its folder or out of the cache, into which it is fetched first."""
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
    """Read every shard that is new or has changed, and write the index to `out` (default: the cache); returns where it is.

    Args:
        processes: how many read shards at the same time; default: the CPUs that this process has, for small data sets one.

    Raises:
        DataError: with `on_damage="stop"` everything that is wrong, up to 20 lines and a count of the rest.
    """
    source = open_source(folder)
    out, card = out or user_index_path(folder), read_card(folder)
    state, shards = index_state(source, card), Shards(source, cache)
    known = _known(out, state)
    done, total = 0, sum(split.samples for split in card.splits.values())
    tables: list[pa.Table] = []

    def scan(number: int) -> tuple[pa.Table, list[Problem]]:
        shard = state["shards"][number]
        if (before := known.get((shard["split"], shard["name"], shard["size"], shard["tag"]))) is not None:
            return before[0].set_column(2, "shard", pa.array(np.full(before[0].num_rows, number, np.int32))), before[1]
        if isinstance(source, LocalFolder) or shard["tag"] is None:
            path = Path(folder) / shard["name"] if isinstance(source, LocalFolder) else Path(shard["name"])
            return read(path, shard["split"], number, card, name=shard["name"])
        file = shards.open(shard["name"], shard["size"], shard["tag"])
        return read(Path(f"/proc/{os.getpid()}/fd/{file.descriptor}"), shard["split"], number, card, name=shard["name"])

    if processes is None:
        new = sum(shard["tag"] is None or tuple(shard.values()) not in known for shard in state["shards"])
        processes = max(min(len(os.sched_getaffinity(0)), new), 1) if total > MAX_SERIAL_SAMPLES else 1
    with (
        _readers(processes) as read,
        ThreadPoolExecutor(max(MAX_PARALLEL_DOWNLOADS, processes) if source.remote else processes) as pool,
    ):
        for number, (table, found) in enumerate(pool.map(scan, range(len(state["shards"])))):
            done += table.num_rows
            wrong = {key_of(problem.key) for problem in found} | {problem.key for problem in found}
            if wrong - {""}:
                table = table.filter(pc.invert(pc.is_in(table["key"], pa.array(sorted(wrong - {""}), pa.string()))))
            state["shards"][number]["problems"] = [list(asdict(problem).values()) for problem in found]
            tables.append(table)
            if progress is not None:
                progress(done, total)
    _once(tables, state, card)
    _write(tables, state, out)
    if on_damage == "stop":
        raise_problems(str(folder), problems_of(state))
    return out


@contextmanager
def _readers(processes: int) -> Iterator[Callable[..., tuple[pa.Table, list[Problem]]]]:
    """`table.rows`, in this process or in so many others; parsing tars is Python's work, so threads would wait for each other."""
    if processes == 1:
        yield rows
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("forkserver")) as pool:
        try:
            yield lambda *arguments, **named: pool.submit(rows, *arguments, **named).result()
        except BrokenProcessPool:
            raise DataError("a process that read shards was killed (out of memory?); start again") from None


def _once(tables: list[pa.Table], state: dict[str, Any], card: DatasetCard) -> None:
    """Note what only shows when a split is seen whole, and leave all but the first sample of a key out."""
    shards = state["shards"]
    found = [Problem(*problem) for shard in shards for problem in shard["problems"]]
    left_out = {shard["split"] for shard in shards if shard["problems"]}
    table = joined(tables)
    state["problems"] = {}
    for split, about in card.splits.items():
        alone = card.model_copy(update={"splits": {split: about}})
        mine = split_problems(table, alone, [(shard["split"], shard["name"]) for shard in shards], found)
        if split in left_out:  # samples were left out: the count says nothing new
            mine = [p for p in mine if p.file != CARD_FILE]
        state["problems"][split] = [list(asdict(p).values()) for p in mine]
        seen: set[str] = set()
        twice = {p.key for p in mine if p.key}
        for number, shard in enumerate(shards):
            if twice and shard["split"] == split:
                keys = tables[number]["key"].to_pylist()
                keep = [not (key in twice and (key in seen or seen.add(key))) for key in keys]  # type: ignore[func-returns-value]
                tables[number] = tables[number].filter(pa.array(keep, pa.bool_()))


def problems_of(state: dict[str, Any]) -> list[Problem]:
    """What an index found wrong: of whole shards, then of single samples."""
    found = [Problem(*problem) for shard in state["shards"] for problem in shard["problems"]]
    return found + [Problem(*problem) for problems in state["problems"].values() for problem in problems]


def raise_problems(folder: str, problems: list[Problem]) -> None:
    """Raise `DataError` with the first problems, if there are any."""
    if problems:
        lines = summarize_lines([f"{folder}/{problem}" for problem in problems], MAX_PROBLEMS_SHOWN, "problems")
        raise DataError(
            "\n".join(
                [
                    *lines,
                    f"`{shell_command('mtgen shards validate', folder)}` decodes everything and lists every problem",
                ]
            )
        )


def index_state(source: LocalFolder | RemoteStore, card: DatasetCard) -> dict[str, Any]:
    """What an index depends on; an index whose state says the same is up to date."""
    names = [(split, name) for split in card.splits for name in shard_names(str(source), card, split)]
    with ThreadPoolExecutor(4 * MAX_PARALLEL_DOWNLOADS if source.remote else 1) as pool:
        versions = list(pool.map(source.version, [name for _, name in names]))
    shards = [
        {"split": split, "name": name, "size": version.size if version else 0, "tag": version.tag if version else None}
        for (split, name), version in zip(names, versions, strict=True)
    ]
    return {"version": INDEX_VERSION, "card": card.model_dump(mode="json"), "shards": shards}


def _recorded(path: Path) -> tuple[dict[str, Any], pq.ParquetFile] | None:
    """What a file says about itself; `None` where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        file = pq.ParquetFile(path)
        return json.loads((file.schema_arrow.metadata or {}).get(b"mtgen", b"{}")), file
    except (pa.ArrowException, OSError, ValueError):  # a damaged index is as good as none: it is built again
        return None


def read_index(path: Path, state: dict[str, Any]) -> tuple[dict[str, Any], pq.ParquetFile] | None:
    """The index in a file, `None` where there is none or it is out of date."""
    if (found := _recorded(path)) is None:
        return None
    kept = [{key: shard.get(key) for key in ("split", "name", "size", "tag")} for shard in found[0].get("shards", [])]
    same = {**state, "shards": kept} == state and all(found[0].get(key) == state[key] for key in ("version", "card"))
    return found if same else None


def _known(path: Path, state: dict[str, Any]) -> dict[tuple[Any, ...], tuple[pa.Table, list[Problem]]]:
    """Rows and problems of an older index by what its shards were, as far as `dataset.json` still means the same."""
    found = _recorded(path)
    if found is None or found[0].get("version") != INDEX_VERSION:
        return {}
    old, file = found
    meant = ("classes", "mask_classes", "ignore_index")
    if any(old["card"].get(key) != state["card"].get(key) for key in meant) or any(old["problems"].values()):
        return {}
    try:
        table = file.read()
    except (pa.ArrowException, OSError):
        return {}
    known, begin = {}, 0
    for shard in old["shards"]:
        part = _full(table.slice(begin, shard["rows"]))
        problems = [Problem(*problem) for problem in shard["problems"]]
        known[shard["split"], shard["name"], shard["size"], shard["tag"]] = (part, problems)
        begin += shard["rows"]
    return {key: value for key, value in known.items() if key[3] is not None}


def _full(part: pa.Table) -> pa.Table:
    """Rows with all columns again, also those of components that the file has none of."""
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
    """Write beside and rename, so that builders at the same time and a full disk leave a whole index or none."""
    for shard, table in zip(state["shards"], tables, strict=True):
        digest = hashlib.sha256()
        for part in STORED_PARTS:
            digest.update(np.ascontiguousarray(table[f"{part}_size"].to_numpy()).tobytes())
            digest.update(np.ascontiguousarray(table[f"{part}_crc"].to_numpy()).tobytes())
        shard |= {"rows": table.num_rows, "digest": digest.hexdigest()}
    whole = joined(tables)
    there = [p for p in STORED_PARTS if p == "image" or pc.any(pc.greater_equal(whole[f"{p}_offset"], 0)).as_py()]
    whole = whole.select([n for n in whole.column_names if n.rpartition("_")[0] not in set(STORED_PARTS) - set(there)])
    state["groups"], begin, group, pieces = {}, 0, 0, []
    for split in state["card"]["splits"]:
        count = sum(shard["rows"] for shard in state["shards"] if shard["split"] == split)
        pieces.append(whole.slice(begin, count))
        state["groups"][split] = list(range(group, group + -(-count // ROWS_PER_GROUP)))
        begin, group = begin + count, group + -(-count // ROWS_PER_GROUP)
    schema = whole.schema.with_metadata({"mtgen": json.dumps(state)})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=out.name, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
        try:
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for piece in pieces:
                    if piece.num_rows:
                        writer.write_table(
                            piece.replace_schema_metadata(schema.metadata), row_group_size=ROWS_PER_GROUP
                        )
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{out}: the index cannot be written ({error.strerror}); point MTGEN_CACHE at a folder that can be written, "
            "or run `mtgen shards index` where the data is"
        ) from None
