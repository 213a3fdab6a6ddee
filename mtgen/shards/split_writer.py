"""Writing the shards of one split: full at a size in bytes, and the same bytes in every run."""

import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from mtgen.data.key_hashes import key_hashes
from mtgen.data.shard_scan import key_of

TAR_OPTIONS: dict[str, Any] = {"encoder": False, "mtime": 0, "user": "mtgen", "group": "mtgen"}
"""Options of WebDataset's writers: bytes are stored as given, and headers do not differ from run to run."""

SHARD_BYTES = 256_000_000
"""Size at which a shard is full: large enough for a store to send it fast, small enough to be cached by the dozen."""

MIN_SAMPLES_PER_SHARD = 1000
"""Samples that a full shard has at least, so that shards of large samples are shuffled well too."""


class SplitWriter:
    """Writes the shards of a split.

    Attributes:
        paths: the shards so far.
        total: number of samples so far.
    """

    def __init__(self, folder: Path, split: str, samples_per_shard: int | None) -> None:
        self.paths: list[Path] = []
        self.total = 0
        self._folder = folder
        self._split = split
        self._samples_per_shard = samples_per_shard
        self._count = 0
        self._file: IO[bytes] | None = None
        self._tar: Any = None

    def _is_full(self) -> bool:
        if self._samples_per_shard is not None:
            return self._count >= self._samples_per_shard
        assert self._file is not None
        return self._count >= MIN_SAMPLES_PER_SHARD and self._file.tell() >= SHARD_BYTES

    def write(self, sample: dict[str, Any]) -> None:
        """Add a sample, as WebDataset's writers take it."""
        import webdataset  # imported here: inference does without it

        if self._file is None or self._is_full():
            self.close()
            self.paths.append(self._folder / f"{self._split}-{len(self.paths):06d}.tar")
            self._file = self.paths[-1].open("wb")
            self._tar = webdataset.TarWriter(self._file, **TAR_OPTIONS)
            self._count = 0
        self._tar.write(sample)
        self._count += 1
        self.total += 1

    def close(self) -> None:
        """Complete the last shard."""
        file, tar, self._file, self._tar = self._file, self._tar, None, None
        if file is not None:
            with file:
                tar.close()


def keys_among(paths: Iterable[Path], hashes: set[int]) -> Iterator[str]:
    """The keys with these hashes in some shards, one for each sample."""
    for path in paths:
        with tarfile.open(path) as tar:
            keys = [key for key, _ in groupby(map(key_of, tar.getnames()))]
        yield from (key for key, number in zip(keys, key_hashes(keys).tolist(), strict=True) if number in hashes)
