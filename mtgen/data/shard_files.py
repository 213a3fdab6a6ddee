"""The shards of a data set as open files: in their folder, or in the node's cache."""

import os
from collections.abc import Iterable

from mtgen.errors import ChangedShard
from mtgen.storage.fetcher import Fetcher
from mtgen.storage.remote_store import RemoteStore, Version
from mtgen.storage.shard_cache import GB, CachedFile, ShardCache, root
from mtgen.storage.source import LocalFolder

DEFAULT_CACHE_GB = 50.0
"""Default limit of the disk space on a node for the shards of remote data sets, GB."""


class Shards:
    """The shards of a source as open files.

    Args:
        cache: GB of local disk that remote shards may take.
    """

    def __init__(self, source: LocalFolder | RemoteStore, cache: float = DEFAULT_CACHE_GB) -> None:
        self.source = source
        if isinstance(source, RemoteStore):
            self.cache = ShardCache(root() / "shards", int(cache * GB))
            self.fetcher = Fetcher(self.cache.folder)

    def open(self, name: str, version: Version, sha256: str = "") -> CachedFile:
        """Open a shard: a local one in its folder, a remote one in the cache, where the node's fetcher brings it.

        Raises:
            ChangedShard: it is not the one that was indexed.
            DataError: it cannot be downloaded.
            OSError: a local shard cannot be opened.
        """
        if isinstance(self.source, RemoteStore):
            return self.fetcher.fetch(self.cache, self.source, name, version, sha256)
        file = CachedFile(os.open(self.source.path / name, os.O_RDONLY | os.O_CLOEXEC))
        if (size := os.fstat(file.descriptor).st_size) != version.size:
            raise ChangedShard(
                f"{self.source}/{name}: changed since it was indexed (it had {version.size:,} bytes and has {size:,}); "
                "start again, or index it again with `mtgen shards index`"
            )
        return file

    def fetch_ahead(self, shards: Iterable[tuple[str, Version, str]]) -> None:
        """Start to download shards that will be read soon, as (name, version, SHA-256); no-op for local ones."""
        if isinstance(self.source, RemoteStore):
            self.fetcher.fetch_ahead(self.cache, self.source, shards)
