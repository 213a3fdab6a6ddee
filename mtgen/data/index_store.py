"""Where indexes are: beside the data, named by `dataset.json`, or else in the cache of this user on this node.

An index beside the data is trusted: a start asks neither for shards nor for their versions, and every shard is checked
when it is fetched. An index in the cache is built by the first process of a node that needs it; the others wait.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtgen.data.dataset_card import CARD_FILE, card_of, read_card_text
from mtgen.data.index_build import (
    MAX_SERIAL_SAMPLES,
    IndexBuilder,
    IndexProgress,
    Parts,
    current_shards,
    raise_problems,
    source_kind,
    unwritable,
)
from mtgen.data.index_file import IndexFile, ShardRecord, shards_file
from mtgen.data.shard_files import DEFAULT_CACHE_GB
from mtgen.errors import ConfigError, DataError
from mtgen.schema import DatasetCard
from mtgen.storage.remote_store import RemoteStore
from mtgen.storage.shard_cache import file_sha256, root
from mtgen.storage.source import LocalFolder, open_source
from mtgen.utils.shell import shell_command

INDEX_FOLDER = "index"
"""Folder of the index beside `dataset.json`."""

PARTS_FOLDER = f"{INDEX_FOLDER}/parts"
LATEST, STALE = "latest", "stale"
"""Files that hold the digest of the newest index in a cache folder; the second one of an index that is out of date."""

MAX_CHECKED_SHARDS = 10_000
"""Sizes and times of up to so many shards of a local folder are compared when it is opened, in about 50 ms."""

Source = LocalFolder | RemoteStore


def dataset_index_path(folder: str | Path) -> Path:
    """Folder of the index beside the data, which all users share."""
    return Path(folder) / INDEX_FOLDER


def user_index_path(folder: str | Path) -> Path:
    """Folder of this user's own index of a data set, in `$MTGEN_CACHE`, else `~/.cache/mtgen`."""
    name = str(open_source(folder)) if not Path(folder).exists() else str(Path(folder).resolve())
    return root() / "index" / hashlib.sha256(os.fsencode(name)).hexdigest()[:24]


def find_index(
    source: Source,
    card: DatasetCard,
    digest: str,
    split: str,
    progress: IndexProgress | None = None,
    cache: float = DEFAULT_CACHE_GB,
) -> tuple[IndexFile, Path | None]:
    """The up-to-date index of a data set, and the file that names it if it is in the cache; a missing one is built.

    Args:
        card, digest: the content of `dataset.json`; see `card_of`.
        split: the split whose samples are needed here.
        progress: called with (samples done, samples in total).
        cache: GB of local disk that remote shards may take.

    Raises:
        DataError: the index named by `dataset.json` is missing or not that of its shards; or it cannot be built.
    """
    folder = user_index_path(str(source))
    if digest and isinstance(source, RemoteStore):
        return _download_index(source, card, digest, split, folder), None
    if digest and isinstance(source, LocalFolder):
        file = IndexFile.open(source.path / INDEX_FOLDER, digest)
        if file is not None and _is_current(file, source, card):
            return file, None
        _say(f"{source}: its index is not that of its shards; indexing it again in {folder}")
    if (file := _cached_index(source, card, folder)) is not None:
        return file, folder / LATEST
    with node_lock(folder):
        if (file := _cached_index(source, card, folder)) is None:
            _remove_old_format(source, folder)
            _build_in_cache(source, card, folder, progress, cache)
            file = _cached_index(source, card, folder)
    if file is None:
        raise DataError(f"{source}: its shards changed while they were indexed; start again when they are complete")
    return file, folder / LATEST


def _is_current(file: IndexFile, source: Source, card: DatasetCard) -> bool:
    """Whether an index is that of a card, and of its shards as far as they are compared."""
    if file.card != card.model_dump(mode="json") or not all(file.has_samples(split) for split in card.splits):
        return False
    if source.remote or sum(part["shards"] for part in file.splits.values()) > MAX_CHECKED_SHARDS:
        return True
    same_tags = file.kind == source_kind(source)  # a copy from a store keeps its index: only sizes are compared

    def versions(shards: list[ShardRecord]) -> list[tuple[str, int, str | None]]:
        return [(shard.name, shard.size, shard.tag if same_tags else "") for shard in shards]

    now = current_shards(source, card)
    return all(versions(file.records(split)) == versions(now[split]) for split in card.splits)


def _cached_index(source: Source, card: DatasetCard, folder: Path) -> IndexFile | None:
    """The index in a cache folder, if it is up to date."""
    file = _named(folder / LATEST)
    return file if file is not None and _is_current(file, source, card) else None


def _named(pointer: Path) -> IndexFile | None:
    """The index in a cache folder that a file names."""
    try:
        return IndexFile.open(pointer.parent, pointer.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _newest(folder: Path) -> IndexFile | None:
    """The newest index in a cache folder, whether it is up to date or not."""
    return _named(folder / LATEST) or _named(folder / STALE)


def mark_stale(pointer: Path) -> None:
    """Have the next start index again, because a shard is not the one that was indexed."""
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        pointer.rename(pointer.with_name(STALE))


def _build_in_cache(
    source: Source, card: DatasetCard, folder: Path, progress: IndexProgress | None, cache: float
) -> str:
    """Build an index in a cache folder; returns its digest."""
    large = sum(split.samples for split in card.splits.values()) > MAX_SERIAL_SAMPLES
    parts = Parts(LocalFolder(folder), "parts", card, source_kind(source)) if large else None
    builder = IndexBuilder(source, card, _newest(folder), parts, cache)
    builder.read_shards(progress=progress)
    digest = builder.write(folder)
    LocalFolder(folder).write(LATEST, digest.encode())
    LocalFolder(folder).remove(STALE)
    if parts is not None:
        parts.remove()
    _remove_others(LocalFolder(folder), "", [IndexFile.open(folder, digest)])
    return digest


@contextmanager
def node_lock(folder: Path) -> Iterator[None]:
    """Hold a cache folder's lock: one process of the node builds or downloads an index, the others wait for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise unwritable(folder, error) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download_index(source: RemoteStore, card: DatasetCard, digest: str, split: str, folder: Path) -> IndexFile:
    """The index that a store's `dataset.json` names, after downloading what the cache folder lacks of it."""
    command = shell_command("mtgen shards index", source)
    name = shards_file(digest)
    file = IndexFile.open(folder, digest)
    if file is None or not file.has_samples(split):
        with node_lock(folder):
            if (file := IndexFile.open(folder, digest)) is None:
                data = source.read(f"{INDEX_FOLDER}/{name}")
                if data is None or hashlib.sha256(data).hexdigest() != digest:
                    problem = "is missing" if data is None else "has another SHA-256 than dataset.json names"
                    raise DataError(f"{source}/{INDEX_FOLDER}/{name}: {problem}; run `{command}`")
                LocalFolder(folder).write(name, data)
                file = IndexFile.open(folder, digest)
            if file is None:
                raise DataError(f"{source}/{INDEX_FOLDER}/{name}: is of another version of mtgen; run `{command}`")
            if split in file.splits:
                _download_samples(source, file, split)
    if file.card != card.model_dump(mode="json"):
        raise DataError(f"{source}/{CARD_FILE}: was changed after the data set was indexed; run `{command}`")
    return file


def _download_samples(source: RemoteStore, file: IndexFile, split: str) -> None:
    """Download the table of samples of a split, unless it is there."""
    if file.has_samples(split):
        return
    part = file.splits[split]
    name, temporary = f"{INDEX_FOLDER}/{part['file']}", file.folder / f".{part['file']}.part"
    try:
        source.fetch(name, part["size"], temporary)
        if file_sha256(temporary) != part["sha256"]:
            command = shell_command("mtgen shards index", source)
            raise DataError(f"{source}/{name}: has another SHA-256 than when it was written; run `{command}`")
        temporary.rename(file.folder / part["file"])
    except OSError as error:
        raise unwritable(file.folder, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def index_dataset(
    folder: str | Path,
    progress: IndexProgress | None = None,
    *,
    part: tuple[int, int] | None = None,
    cache: float = DEFAULT_CACHE_GB,
    processes: int | None = None,
) -> str:
    """Index a data set and keep the index beside it, where `dataset.json` names it by its digest.

    Shards of the existing index are not read again unless they have changed, and a killed call resumes. Any number of
    calls may run at the same time.

    Args:
        folder: a folder or a URL. An HTTP server cannot be written to: the index stays in the cache.
        progress: called with (samples done, samples in total).
        part: `(i, n)`: only read the shards `i`, `i + n`, ... and keep their rows beside the data, for a later call
            without it that completes the index.
        cache: GB of local disk that remote shards may take.
        processes: number of processes that read shards; default: one per available CPU, one for small data sets.

    Returns:
        The path or URL of the index, or of the folder of parts.

    Raises:
        DataError: a problem of the data set, after the index is written; or it cannot be written.
    """
    source = open_source(folder)
    text = read_card_text(source, folder)
    card, digest = card_of(folder, text)
    cached = user_index_path(folder)
    beside = isinstance(source, LocalFolder) or source.writable
    if not beside and part is not None:
        raise DataError(f"{source}: cannot be written to, so parts cannot be kept there; index it without --part")
    with node_lock(cached):
        if not beside:
            _build_in_cache(source, card, cached, progress, cache)
            file, place = _named(cached / LATEST), str(cached)
        else:
            target = source.path / INDEX_FOLDER if isinstance(source, LocalFolder) else cached
            earlier = _earlier(source, digest, target)
            builder, parts = _builder_beside(source, card, earlier, part is not None, cache, processes)
            builder.read_shards(part or (0, 1), progress)
            if part is not None:
                return f"{source}/{PARTS_FOLDER}"
            file = _publish(source, text, builder, target, earlier)
            place = f"{source}/{INDEX_FOLDER}/{shards_file(file.digest)}"
            if parts is not None:
                parts.remove()
            _remove_old_format(source, cached)
    _raise_problems(source, file)
    return place


def _builder_beside(
    source: Source, card: DatasetCard, earlier: IndexFile | None, keep: bool, cache: float, processes: int | None
) -> tuple[IndexBuilder, Parts | None]:
    """The builder of an index beside the data, and the parts that it takes and leaves there.

    Args:
        keep: leave parts beside a small data set too.
    """
    large = keep or sum(split.samples for split in card.splits.values()) > MAX_SERIAL_SAMPLES
    kept = source.names(PARTS_FOLDER) if not large else ()
    parts = Parts(source, PARTS_FOLDER, card, source_kind(source)) if large or kept else None
    return IndexBuilder(source, card, earlier, parts, cache, processes), parts


def _publish(source: Source, text: bytes, builder: IndexBuilder, target: Path, earlier: IndexFile | None) -> IndexFile:
    """Write an index beside the data, name it in `dataset.json`, and remove others, in a store but the one before.

    Args:
        text: the content of `dataset.json`.
        target: where it is written first: in its final folder, or for a store in the cache.
    """
    file = IndexFile.open(target, builder.write(target))
    assert file is not None
    if isinstance(source, RemoteStore):
        _upload(source, file)
    source.write(CARD_FILE, _with_digest(text, file.digest))
    _remove_others(source, INDEX_FOLDER, [file, earlier if source.remote else None])
    if isinstance(source, RemoteStore):
        _remove_others(LocalFolder(target), "", [file])
    return file


def parse_part(text: str) -> tuple[int, int]:
    """Parse "1/16" -> (0, 16).

    Raises:
        ConfigError: it is not of this form, or not one of the parts.
    """
    match = re.fullmatch("([0-9]+)/([0-9]+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--part {text}: write for example 1/16, the first of 16 parts")
    return int(match[1]) - 1, int(match[2])


def _earlier(source: Source, digest: str, target: Path) -> IndexFile | None:
    """The newest index of a data set that this node has or can get, whether it is up to date or not."""
    file = IndexFile.open(target, digest) if digest else None
    if file is None and digest and isinstance(source, RemoteStore):
        data = source.read(f"{INDEX_FOLDER}/{shards_file(digest)}")
        if data is not None:
            LocalFolder(target).write(shards_file(digest), data)
            file = IndexFile.open(target, digest)
    if file is not None and isinstance(source, RemoteStore):
        for split in file.splits:
            _download_samples(source, file, split)
    return file if file is not None else _newest(user_index_path(str(source)))


def _upload(source: RemoteStore, file: IndexFile) -> None:
    for part in file.splits.values():
        source.put(f"{INDEX_FOLDER}/{part['file']}", file.folder / part["file"])
    source.put(f"{INDEX_FOLDER}/{shards_file(file.digest)}", file.folder / shards_file(file.digest))


def _with_digest(text: bytes, digest: str) -> bytes:
    """The content of `dataset.json` with the digest of its index."""
    values = json.loads(text) | {"index": digest}
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def _remove_others(source: Source, folder: str, kept: list[IndexFile | None]) -> None:
    """Remove the files of all indexes in a folder but some: in a store the one before, which nodes may be reading."""
    files = {shards_file(file.digest) for file in kept if file is not None}
    files |= {part["file"] for file in kept if file is not None for part in file.splits.values()}
    for name in source.names(folder):
        if name.endswith(".arrow") and name.startswith(("shards-", "samples-")) and name not in files:
            source.remove(f"{folder}/{name}" if folder else name)


def _remove_old_format(source: Source, cached: Path) -> None:
    """Remove indexes that earlier versions of mtgen wrote, and say so."""
    found = [path for path in (cached.with_name(f"{cached.name}.parquet"),) if path.is_file()]
    if isinstance(source, LocalFolder) and (source.path / "index.parquet").is_file():
        found.append(source.path / "index.parquet")
    for path in found:
        _say(f"{path}: an index of an earlier version of mtgen; the data set is indexed again, which is done once")
        try:
            path.unlink()
        except OSError as error:
            _say(f"{path}: cannot be removed ({error.strerror}); it is not used any more")


def _raise_problems(source: Source, file: IndexFile | None) -> None:
    if file is not None:
        raise_problems(str(source), file.all_problems())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
