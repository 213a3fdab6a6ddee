"""Writing the shards of one split: full at a size in bytes, and the same bytes in every run."""

import contextlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from mtgen.data.key_hashes import key_hashes
from mtgen.data.shard_scan import key_of
from mtgen.shards.draft import Draft, shard_name

TAR_OPTIONS: dict[str, Any] = {"encoder": False, "mtime": 0, "user": "mtgen", "group": "mtgen"}
"""Options of WebDataset's writers: bytes are stored as given, and headers do not differ from run to run."""

SHARD_BYTES = 256_000_000
"""Size at which a shard is full: large enough for a store to send it fast, small enough to be cached by the dozen."""

MIN_SAMPLES_PER_SHARD = 1000
"""Samples that a full shard has at least, so that shards of large samples are shuffled well too."""


@dataclass(frozen=True)
class ShardSize:
    """A shard is full when it has this many bytes and this many samples."""

    bytes: int
    samples: int

    @classmethod
    def of(cls, samples_per_shard: int | None) -> "ShardSize":
        """Shards of a number of samples; `None`: of 256 MB, and of 1,000 samples at least."""
        if samples_per_shard is not None:
            return cls(0, samples_per_shard)
        return cls(SHARD_BYTES, MIN_SAMPLES_PER_SHARD)


class SplitWriter:
    """Writes the shards of a split.

    Attributes:
        shards: names of the shards so far.
        total: number of samples so far.
    """

    def __init__(self, draft: Draft, split: str, size: ShardSize) -> None:
        self.shards: list[str] = []
        self.total = 0
        self._draft = draft
        self._split = split
        self._size = size
        self._count = 0
        self._file: IO[bytes] | None = None
        self._tar: Any = None

    def _is_full(self) -> bool:
        assert self._file is not None
        return self._count >= self._size.samples and self._file.tell() >= self._size.bytes

    @property
    def _part(self) -> Path:
        """The file of the shard that is being written."""
        return self._draft.path / f"{self.shards[-1]}.part"

    def write(self, sample: dict[str, Any]) -> None:
        """Add a sample, as WebDataset's writers take it."""
        import webdataset  # imported here: inference does without it

        if self._file is None or self._is_full():
            self.close()
            self.shards.append(shard_name(self._split, len(self.shards)))
            self._file = self._part.open("wb")
            self._tar = webdataset.TarWriter(self._file, **TAR_OPTIONS)
            self._count = 0
        self._tar.write(sample)
        self._count += 1
        self.total += 1

    def close(self) -> None:
        """Complete the last shard."""
        if self._file is not None:
            self._close_file()
            self._draft.store(self._part, self.shards[-1])

    def abandon(self) -> None:
        """Close the last shard without keeping it."""
        with contextlib.suppress(OSError):  # closing flushes, which fails on a full disk
            self._close_file()

    def _close_file(self) -> None:
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
